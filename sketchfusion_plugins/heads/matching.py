"""Matching of points and of whole maps between two images, by cosine similarity of descriptors.

Points and strides are as `sketchfusion_plugins.heads.cells` has them. Similarity is computed in
float32 at least, under autocast too. Coordinates are constants: gradient reaches descriptors alone.

Windowed soft-argmax is the released code's way of reading a match; its parent is Zhang et al.,
"Telling Left from Right" (GeoAware-SC, CVPR 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchfusion_plugins.heads.cells import (
    Stride,
    at_least_float32,
    cell_centres,
    check_maps,
    grid_descriptors,
    require_kornia,
    sample_descriptors,
    stride_pair,
    visible_points,
)

TEMPERATURE = 0.02
# The released code has 7 cells on maps of 60. On 16, 7 cells are hardly a window: of 125 drawings
# and pictures, 2 instead of 7 raised PCK@5 from 0.607 to 0.642, and HOG's from 0.293 to 0.354.
CELLS_PER_RADIUS = 8


class Matches(NamedTuple):
    """Matched points of one image pair.

    Attributes:
        source: ``[M, 2]`` in pixels.
        target: ``[M, 2]`` in pixels.
        score: Cosine similarity ``[M]``, -1..1.
    """

    source: Tensor
    target: Tensor
    score: Tensor


def match_points(
    source: Tensor,
    target: Tensor,
    points: Tensor,
    *,
    source_stride: Stride,
    target_stride: Stride,
    visible: Tensor | None = None,
    radius: int | Literal["auto"] | None = "auto",
    temperature: float = TEMPERATURE,
    chunk: int = 1024,
) -> Tensor:
    """Find where points of the source images lie in the target images.

    Args:
        source: Map of the source images, ``[B, C, h, w]``.
        target: Map of the target images, ``[B, C, h2, w2]``.
        points: ``[B, N, 2]`` in pixels of the source images, on any device; those outside take
            the border's descriptor.
        source_stride: Pixels per cell of the source map.
        target_stride: Pixels per cell of the target map.
        visible: Which points there are, bool ``[B, N]``; None for all. The others may hold
            anything and influence nothing.
        radius: Half-width, in cells, of the window around the best cell that the soft-argmax is
            confined to; ``"auto"`` for an eighth of the target map's longer side, at least 1;
            None for all cells, as in training.
        temperature: Of the softmax over cells.
        chunk: Points matched at a time, which bounds the memory of inference.

    Returns:
        ``[B, N, 2]`` in pixels of the target images, on the maps' device; NaN for points that are
        not visible.

    Raises:
        ValueError: Shapes do not fit, a visible point is not finite, or an option is out of range.

    Example:
        >>> import torch
        >>> features = torch.eye(6).reshape(1, 6, 2, 3)
        >>> match_points(
        ...     features, features, torch.tensor([[[20.0, 4.0]]]), source_stride=8, target_stride=8
        ... )
        tensor([[[20.,  4.]]])
    """
    check_maps(source, target)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 point, got {chunk}.")
    visible = visible_points(points, visible)
    if radius == "auto":
        radius = max(1, max(target.shape[-2:]) // CELLS_PER_RADIUS)
    vertical, horizontal = stride_pair(target_stride)
    queries = sample_descriptors(source, points, source_stride, visible)
    with torch.autocast(source.device.type, enabled=False):
        keys = F.normalize(at_least_float32(target), dim=1)
        found = [
            soft_argmax((part @ keys.flatten(2)).unflatten(2, keys.shape[2:]), temperature, radius)
            for part in queries.split(chunk, dim=1)
        ]
    pixels = torch.cat(found, dim=1) * queries.new_tensor([horizontal, vertical])
    return torch.where(visible.to(pixels.device)[..., None], pixels, float("nan"))


def soft_argmax(
    similarity: Tensor, temperature: float = TEMPERATURE, radius: int | None = None
) -> Tensor:
    """Expected position under a softmax over cells.

    Args:
        similarity: ``[B, N, h, w]``.
        temperature: Divides the similarity.
        radius: Half-width, in cells, of the window around the maximum that counts; None for all
            cells, 0 for the maximum itself. The choice of the window has no gradient.

    Returns:
        ``[B, N, 2]`` as ``(x, y)`` in cells, cell ``(i, j)`` being centred at
        ``(j + 0.5, i + 0.5)``.

    Raises:
        ModuleNotFoundError: kornia is not installed.
        ValueError: ``temperature`` or ``radius`` is out of range.
    """
    require_kornia()
    from kornia.geometry.subpix import spatial_expectation2d, spatial_softmax2d

    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}.")
    # Divided here: kornia before 0.9 multiplies by its temperature.
    logits = at_least_float32(similarity) / temperature
    if radius is not None:
        if radius < 0:
            raise ValueError(f"radius must be 0 cells or more, or None for all, got {radius}.")
        # A weight of exactly 0: multiplying similarities by 0 leaves exp(0) to every cell outside.
        logits = logits.masked_fill(_outside_window(similarity, radius), float("-inf"))
    position: Tensor = spatial_expectation2d(
        spatial_softmax2d(logits.contiguous()), normalized_coordinates=False
    )
    return position + 0.5


def match_mutually(
    source: Tensor, target: Tensor, *, source_stride: Stride, target_stride: Stride
) -> list[Matches]:
    """Cells of two maps that are each other's nearest neighbour, through `kornia.feature`.

    Args:
        source: Map of the source images, ``[B, C, h, w]``.
        target: Map of the target images, ``[B, C, h2, w2]``.
        source_stride: Pixels per cell of the source map.
        target_stride: Pixels per cell of the target map.

    Returns:
        Matches of every image pair, the best first. Points are centres of cells.

    Raises:
        ValueError: Shapes do not fit.
    """
    require_kornia()
    from kornia.feature import match_mnn

    check_maps(source, target)
    source_centres = cell_centres(source, source_stride)
    target_centres = cell_centres(target, target_stride)
    matches = []
    with torch.autocast(source.device.type, enabled=False):
        for first, second in zip(grid_descriptors(source), grid_descriptors(target), strict=True):
            distances, indices = match_mnn(first, second, 1.0 - first @ second.T)
            order = distances[:, 0].argsort(stable=True)
            rows, columns = indices[order].unbind(1)
            scores = 1.0 - distances[order, 0]
            matches.append(Matches(source_centres[rows], target_centres[columns], scores))
    return matches


class SketchFusionDescriptor(nn.Module):
    """An encoder as a local feature of kornia: one key point per cell of its map.

    Fits `kornia.feature.LocalFeatureMatcher`. kornia puts the centre of the first pixel at (0, 0)
    where this package has (0.5, 0.5): add 0.5 to key points that come out of kornia.

    Args:
        encoder: Images ``[B, C, H, W]`` to one map ``[B, D, h, w]``; a `SketchFusionEncoder`
            takes images in -1..1.
        stride: Pixels per cell of the map; None where the map spans its image exactly.

    Example:
        >>> from kornia.feature import DescriptorMatcher, LocalFeatureMatcher
        >>> matcher = LocalFeatureMatcher(
        ...     SketchFusionDescriptor(encoder, stride=8), DescriptorMatcher("mnn")
        ... )  # doctest: +SKIP
    """

    def __init__(self, encoder: Callable[[Tensor], Tensor], stride: Stride | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.stride = None if stride is None else stride_pair(stride)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Describe images.

        Args:
            image: ``[B, C, H, W]`` in the encoder's range.
            mask: ``[B, 1, H, W]``; cells whose centre lies on a 0 are not key points.

        Returns:
            Local affine frames ``[B, h * w, 2, 3]`` in kornia's pixels, each spanning its cell;
            responses ``[B, h * w]``, 1 for key points and 0 for masked cells, whose frames are 0
            as kornia marks empty slots; L2-normalised descriptors ``[B, h * w, D]``.

        Raises:
            ValueError: The encoder returns something else than one map, or the mask does not fit.
        """
        features = self.encoder(image)
        if not isinstance(features, Tensor) or features.ndim != 4:
            got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"expected the encoder to return one map [B, C, h, w], got {got}. "
                "Configure it with one stride instead of a pyramid."
            )
        height, width = image.shape[-2:]
        spanned = (height / features.shape[2], width / features.shape[3])
        stride = spanned if self.stride is None else self.stride
        centres = cell_centres(features, stride)
        frames = centres.new_zeros(len(image), len(centres), 2, 3)
        frames[..., 0, 0], frames[..., 1, 1] = stride[1] / 2, stride[0] / 2
        frames[..., 2] = centres - 0.5
        kept = _mask_at(mask, image, centres)
        return (
            frames * kept[..., None, None],
            kept.to(frames.dtype),
            grid_descriptors(features),
        )


def _outside_window(similarity: Tensor, radius: int) -> Tensor:
    """Cells farther than ``radius`` from the best one along either axis, ``[B, N, h, w]``."""
    height, width = similarity.shape[-2:]
    best = similarity.detach().flatten(-2).argmax(-1)[..., None]
    rows = torch.arange(height, device=similarity.device)
    columns = torch.arange(width, device=similarity.device)
    far_rows = (rows - best // width).abs() > radius
    far_columns = (columns - best % width).abs() > radius
    return far_rows[..., :, None] | far_columns[..., None, :]


def _mask_at(mask: Tensor | None, image: Tensor, centres: Tensor) -> Tensor:
    """Whether centres lie where the mask is not 0, bool ``[B, M]``."""
    batch, _, height, width = image.shape
    if mask is None:
        return torch.ones(batch, len(centres), dtype=torch.bool, device=image.device)
    if mask.shape != (batch, 1, height, width):
        raise ValueError(
            f"expected a mask [{batch}, 1, {height}, {width}] as the images have, got "
            f"{list(mask.shape)}."
        )
    # The last cells' centres may lie beyond the image.
    columns, rows = centres.long().unbind(1)
    return mask[:, 0, rows.clamp(max=height - 1), columns.clamp(max=width - 1)] != 0
