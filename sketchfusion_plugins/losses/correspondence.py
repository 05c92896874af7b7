"""Losses on matched key points of image pairs.

The end-point error of the soft-argmax is what SketchFusion's released code trains with. Its parent,
Zhang et al., "Telling Left from Right: Identifying Geometry-Aware Semantic Correspondence"
(GeoAware-SC, CVPR 2024), adds a symmetric contrastive loss on the same key points, with weight 1.

Both average over the visible points of a pair, then over the pairs that have any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sketchfusion_plugins.heads.cells import (
    Stride,
    check_maps,
    sample_descriptors,
    stride_pair,
    visible_points,
)
from sketchfusion_plugins.heads.matching import TEMPERATURE, match_points
from sketchfusion_plugins.losses.contrast import INITIAL_TEMPERATURE, LARGEST_SCALE


@dataclass(frozen=True)
class CorrespondenceLossConfig:
    """What to train correspondence with. The default is the released code's recipe.

    ``CorrespondenceLossConfig(contrastive=1.0)`` is that of its parent.

    Args:
        end_point: Weight of the end-point error.
        contrastive: Weight of the symmetric contrastive loss.
        temperature: Of the soft-argmax.
        radius: Window of the soft-argmax in cells; None for all cells.
        noise: Standard deviation of Gaussian noise on the true positions while training, as a
            share of the target map's longer side. The released code's 3 of 60 cells are 0.05.
    """

    end_point: float = 1.0
    contrastive: float = 0.0
    temperature: float = TEMPERATURE
    radius: int | None = None
    noise: float = 0.05

    def __post_init__(self) -> None:
        for name in ("end_point", "contrastive", "noise"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be 0 or more and finite, got {value}.")
        if self.end_point == self.contrastive == 0:
            raise ValueError("end_point and contrastive are both 0: give one a weight.")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}.")
        if self.radius is not None and self.radius < 1:
            raise ValueError(
                f"radius must be at least 1 cell, or None for all cells, got {self.radius}: "
                "a window of one cell has no gradient."
            )


class CorrespondenceLoss(nn.Module):
    """Weighted losses on matched key points.

    The contrastive loss learns the scale of its similarities, initialised to 1 / 0.07 and kept at
    100 at most as in CLIP. Noise is added in training mode alone.

    Args:
        config: Weights and options.
    """

    def __init__(self, config: CorrespondenceLossConfig | None = None) -> None:
        super().__init__()
        self.config = CorrespondenceLossConfig() if config is None else config
        # Absent where unused: a parameter without gradient stops distributed training.
        self.log_scale = (
            nn.Parameter(torch.tensor(-math.log(INITIAL_TEMPERATURE)))
            if self.config.contrastive
            else None
        )

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_points: Tensor,
        target_points: Tensor,
        *,
        source_stride: Stride,
        target_stride: Stride,
        visible: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            source: Map of the source images, ``[B, C, h, w]``.
            target: Map of the target images, ``[B, C, h2, w2]``.
            source_points: ``[B, N, 2]`` in pixels, on any device.
            target_points: Where the same points lie in the target images, ``[B, N, 2]`` in pixels,
                on any device.
            source_stride: Pixels per cell of the source map.
            target_stride: Pixels per cell of the target map.
            visible: Which points both images show, bool ``[B, N]`` on any device; None for all.
            generator: Of the noise; None for torch's own.

        Returns:
            Weighted scalars ``loss_end_point`` and ``loss_contrastive``, those whose weight is
            not 0, on the maps' device. They are 0 where no point is visible.

        Raises:
            ValueError: Shapes do not fit, or a visible point is not finite.
        """
        config = self.config
        losses = {}
        if config.end_point:
            noise = config.noise * max(target.shape[-2:]) if self.training else 0.0
            losses["loss_end_point"] = config.end_point * end_point_error(
                source,
                target,
                source_points,
                target_points,
                source_stride=source_stride,
                target_stride=target_stride,
                visible=visible,
                temperature=config.temperature,
                radius=config.radius,
                noise=noise,
                generator=generator,
            )
        if self.log_scale is not None:
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(LARGEST_SCALE))
            losses["loss_contrastive"] = config.contrastive * matched_contrast(
                source,
                target,
                source_points,
                target_points,
                source_stride=source_stride,
                target_stride=target_stride,
                visible=visible,
                scale=self.log_scale.exp(),
            )
        return losses


def end_point_error(
    source: Tensor,
    target: Tensor,
    source_points: Tensor,
    target_points: Tensor,
    *,
    source_stride: Stride,
    target_stride: Stride,
    visible: Tensor | None = None,
    temperature: float = TEMPERATURE,
    radius: int | None = None,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Distance between where the soft-argmax expects key points and where they are.

    The released code compares displacements, which differ from positions by the same source
    point on both sides.

    Args:
        source: See `CorrespondenceLoss.forward`, as for what is not named here.
        target: ``[B, C, h2, w2]``.
        source_points: ``[B, N, 2]`` in pixels.
        target_points: ``[B, N, 2]`` in pixels.
        source_stride: Pixels per cell.
        target_stride: Pixels per cell.
        visible: bool ``[B, N]``.
        temperature: Of the softmax over the target's cells.
        radius: Window in cells; None for all.
        noise: Standard deviation, in cells, of Gaussian noise on the true positions.
        generator: Of the noise, of any device; it is advanced.

    Returns:
        Scalar in cells of the target map.
    """
    source_points, target_points, visible = _matched(source, source_points, target_points, visible)
    found = match_points(
        source,
        target,
        source_points,
        source_stride=source_stride,
        target_stride=target_stride,
        visible=visible,
        radius=radius,
        temperature=temperature,
    )
    vertical, horizontal = stride_pair(target_stride)
    missed = (found - target_points.to(found)) / found.new_tensor([horizontal, vertical])
    if noise:
        device = "cpu" if generator is None else generator.device
        draws = torch.randn(found.shape, generator=generator, device=device)
        missed = missed - noise * draws.to(missed)
    distance = torch.where(visible[..., None], missed, 0.0).norm(dim=2)
    return _mean_over_pairs(distance, visible)


def matched_contrast(
    source: Tensor,
    target: Tensor,
    source_points: Tensor,
    target_points: Tensor,
    *,
    source_stride: Stride,
    target_stride: Stride,
    scale: Tensor | float = 1 / INITIAL_TEMPERATURE,
    visible: Tensor | None = None,
) -> Tensor:
    """Symmetric cross entropy that tells a key point's match from the pair's other key points.

    Key points that share a cell, in either image, are not each other's negatives: their
    descriptors are next to the same.

    Args:
        source: See `CorrespondenceLoss.forward`, as for what is not named here.
        target: ``[B, C, h2, w2]``.
        source_points: ``[B, N, 2]`` in pixels.
        target_points: ``[B, N, 2]`` in pixels.
        source_stride: Pixels per cell.
        target_stride: Pixels per cell.
        scale: Multiplies cosine similarities.
        visible: bool ``[B, N]``.

    Returns:
        Scalar.
    """
    check_maps(source, target)
    source_points, target_points, visible = _matched(source, source_points, target_points, visible)
    queries = sample_descriptors(source, source_points, source_stride, visible)
    keys = sample_descriptors(target, target_points, target_stride, visible)
    shared = _share_cell(source_points, source_stride) | _share_cell(target_points, target_stride)
    hidden = ~(visible[:, :, None] & visible[:, None, :])
    itself = torch.eye(visible.shape[1], dtype=torch.bool, device=visible.device)
    with torch.autocast(source.device.type, enabled=False):
        logits = scale * (queries @ keys.transpose(1, 2))
        logits = logits.masked_fill((shared | hidden) & ~itself, float("-inf"))
        matched = logits.diagonal(dim1=1, dim2=2)
        entropy = (logits.logsumexp(2) + logits.logsumexp(1)) / 2 - matched
    return _mean_over_pairs(entropy, visible)


def _matched(
    features: Tensor, source_points: Tensor, target_points: Tensor, visible: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Points of both images and which there are, checked, on the map's device."""
    if source_points.shape != target_points.shape:
        raise ValueError(
            "every source point needs its target point, got shapes "
            f"{list(source_points.shape)} and {list(target_points.shape)}."
        )
    visible_points(target_points, visible)
    visible = visible_points(source_points, visible)
    device = features.device
    return source_points.to(device), target_points.to(device), visible.to(device)


def _share_cell(points: Tensor, stride: Stride) -> Tensor:
    """Which points of an image lie in one cell, bool ``[B, N, N]``."""
    vertical, horizontal = stride_pair(stride)
    # Not of the points' type, which may be whole numbers.
    cell = (points / torch.tensor([horizontal, vertical], device=points.device)).floor()
    return (cell[:, :, None] == cell[:, None, :]).all(dim=3)


def _mean_over_pairs(values: Tensor, visible: Tensor) -> Tensor:
    """Mean over a pair's visible points, then over pairs with any; 0, with a graph, if none."""
    counts = visible.sum(1)
    means = torch.where(visible, values, 0.0).sum(1) / counts.clamp(min=1)
    return means.sum() / (counts > 0).sum().clamp(min=1)
