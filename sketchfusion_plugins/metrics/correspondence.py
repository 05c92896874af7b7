"""PCK: the share of key points found within a distance of their true place.

Two protocols are published for PSC6K, and their figures do not compare.

``pscnet``: Lu, Wang and Fan, "Learning Dense Correspondences between Photos and Sketches" (ICML
2023). Images of 256 px, a point is right at ``error <= alpha / 100 * 256``; all test pairs, both
from photo to sketch and from sketch to photo; no key point is trained on.

``sketchfusion``: the released code of SketchFusion (CVPR 2025). Images of 336 px, a point is right
at ``error < alpha / 100 * 336``; 20 of a class's 50 test pairs, the key points of the others being
trained on.

Both average over the points of an image, then over images; the mean over all points is given too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Protocol:
    """How PCK is judged.

    Args:
        name: Under which figures are reported.
        size: Side of the images in pixels, and what ``alphas`` are percent of.
        inclusive: Whether a point exactly at the limit is right.
        alphas: Limits in percent of ``size``.
    """

    name: str
    size: int
    inclusive: bool
    alphas: tuple[float, ...] = (1, 5, 10)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1 px, got {self.size}.")
        if not self.alphas or not all(0 < alpha < float("inf") for alpha in self.alphas):
            raise ValueError(f"alphas must be percentages above 0, got {self.alphas}.")


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("pscnet", size=256, inclusive=True),
        Protocol("sketchfusion", size=336, inclusive=False),
    )
}


@dataclass(frozen=True)
class KeyPointScores:
    """Counts of a number of images, which add up.

    Attributes:
        protocol: What they were judged by.
        right: Visible points that are right, integers ``[images, alphas]``.
        visible: Visible points, integers ``[images]``.
    """

    protocol: Protocol
    right: Tensor
    visible: Tensor

    def __post_init__(self) -> None:
        expected = (len(self.visible), len(self.protocol.alphas))
        if self.visible.ndim != 1 or self.right.shape != expected:
            raise ValueError(
                f"expected right [images, {expected[1]}] and visible [images], got "
                f"{list(self.right.shape)} and {list(self.visible.shape)}."
            )

    def __add__(self, other: KeyPointScores) -> KeyPointScores:
        if self.protocol != other.protocol:
            raise ValueError(
                f"scores of protocols {self.protocol.name!r} and {other.protocol.name!r} do not "
                "compare. Judge all images by one."
            )
        return KeyPointScores(
            self.protocol,
            torch.cat([self.right, other.right]),
            torch.cat([self.visible, other.visible]),
        )

    @property
    def counted(self) -> Tensor:
        """Images with a visible point, bool ``[images]``."""
        return self.visible > 0

    @property
    def excluded(self) -> int:
        """Images without a visible point, which no mean counts."""
        return int((~self.counted).sum())

    @property
    def items(self) -> Tensor:
        """PCK of every image that has a visible point, 0..1, float64 ``[images, alphas]``."""
        return self.right[self.counted].double() / self.visible[self.counted, None]

    @property
    def per_image(self) -> dict[float, float]:
        """Mean over images of each image's PCK, 0..1, by alpha; NaN without images."""
        return dict(zip(self.protocol.alphas, self.items.mean(0).tolist(), strict=True))

    @property
    def per_point(self) -> dict[float, float]:
        """Share of right points among all visible ones, 0..1, by alpha; NaN without points."""
        shares = self.right.sum(0).double() / self.visible.sum()
        return dict(zip(self.protocol.alphas, shares.tolist(), strict=True))


def key_point_scores(
    found: Tensor,
    true: Tensor,
    image_size: tuple[int, int],
    protocol: str | Protocol,
    visible: Tensor | None = None,
) -> KeyPointScores:
    """Judge found key points.

    Args:
        found: ``[B, N, 2]`` in pixels of the target images.
        true: ``[B, N, 2]`` in the same pixels.
        image_size: Height and width of the target images. Points are scaled so that the longer
            side is the protocol's size.
        protocol: ``"pscnet"``, ``"sketchfusion"`` or one of your own.
        visible: Which points count, bool ``[B, N]``; None for all.

    Raises:
        ValueError: Unknown protocol, shapes that do not fit, or a visible point that is not
            finite.
    """
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise ValueError(
                f"unknown protocol {protocol!r}; there are {', '.join(map(repr, PROTOCOLS))}."
            )
        protocol = PROTOCOLS[protocol]
    if found.ndim != 3 or found.shape[2] != 2 or found.shape != true.shape:
        raise ValueError(
            "expected found and true points [B, N, 2] as (x, y) in pixels, got shapes "
            f"{list(found.shape)} and {list(true.shape)}."
        )
    if min(image_size) < 1:
        raise ValueError(f"expected image_size as (height, width) in pixels, got {image_size}.")
    # Not on the model's device, which may know no double precision.
    found, true = found.detach().cpu(), true.detach().cpu()
    if visible is None:
        visible = torch.ones(found.shape[:2], dtype=torch.bool)
    if visible.shape != found.shape[:2] or visible.dtype != torch.bool:
        raise ValueError(
            f"expected visible as bool {list(found.shape[:2])}, one per point, got "
            f"{visible.dtype} {list(visible.shape)}."
        )
    visible = visible.cpu()
    # Double precision: whether a point lies exactly at the limit must not hang on rounding.
    error = (found.double() - true.double()).norm(dim=2)
    if not bool((error.isfinite() | ~visible).all()):
        raise ValueError(
            "a visible point is NaN or infinite. Mark points that an image lacks as not visible."
        )
    error = error * protocol.size / max(image_size)
    limits = error.new_tensor(protocol.alphas) * protocol.size / 100
    near = error[..., None] <= limits if protocol.inclusive else error[..., None] < limits
    return KeyPointScores(protocol, (near & visible[..., None]).sum(1), visible.sum(1))
