"""Segmentation of a photo by a sketch of what to find in it.

A sketch's pooled descriptor is compared with every cell of the photo's map; cells whose cosine
similarity exceeds a threshold are foreground (SketchFusion, CVPR 2025; the released code lacks
this task). Scale and threshold are learned.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchfusion_plugins.heads.cells import (
    Stride,
    at_least_float32,
    check_maps,
    for_adaptive_pooling,
    stride_pair,
)

Pooling = Literal["all", "ink"]
# Paper of 90 % brightness, in -1..1: scanners and JPEG leave no pure white.
PAPER = 0.8


class QuerySegmentationHead(nn.Module):
    """Logits of a photo's pixels from the maps of a sketch and of the photo.

    ``logit = scale * (cosine - threshold)``, so foreground is where a logit is above 0.

    Args:
        pooling: ``"all"`` averages the sketch's whole map, as the paper does; ``"ink"`` the cells
            that strokes run through.
        scale: Initial scale; kept above 0 by learning its logarithm.
        threshold: Initial threshold, -1..1.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self, pooling: Pooling = "all", scale: float = 1 / 0.07, threshold: float = 0.0
    ) -> None:
        super().__init__()
        if pooling not in ("all", "ink"):
            raise ValueError(f"pooling must be 'all' or 'ink', got {pooling!r}.")
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale must be above 0 and finite, got {scale}.")
        if not -1 <= threshold <= 1:
            raise ValueError(f"threshold is a cosine, -1..1, got {threshold}.")
        self.pooling = pooling
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))

    def forward(
        self,
        sketch: Tensor,
        photo: Tensor,
        size: tuple[int, int],
        *,
        ink: Tensor | None = None,
        photo_stride: Stride | None = None,
    ) -> Tensor:
        """Logits of every pixel.

        Args:
            sketch: Map of the sketches, ``[B, C, h, w]``.
            photo: Map of the photos, ``[B, C, h2, w2]``.
            size: Height and width of the photos.
            ink: Cells of the sketches with strokes, bool ``[B, h, w]``; see `ink_cells`. Needed by
                ``pooling="ink"`` alone.
            photo_stride: Pixels per cell of the photos' map, whose last cells may reach beyond
                the photo; None where the map spans the photo exactly.

        Returns:
            ``[B, H, W]``, float32 at least.

        Raises:
            ValueError: Shapes do not fit, or ``ink`` is missing.
        """
        if self.pooling == "ink" and ink is None:
            raise ValueError("pooling='ink' needs ink; ink_cells(sketch images, ...) makes it.")
        kept = ink if self.pooling == "ink" else None
        cosine = query_similarity(sketch, photo, size, kept, photo_stride)
        return self.log_scale.exp() * (cosine - self.threshold)


def query_similarity(
    sketch: Tensor,
    photo: Tensor,
    size: tuple[int, int],
    ink: Tensor | None = None,
    photo_stride: Stride | None = None,
) -> Tensor:
    """Cosine similarity of a sketch's descriptor with every pixel of a photo.

    Args:
        sketch: Map of the sketches, ``[B, C, h, w]``.
        photo: Map of the photos, ``[B, C, h2, w2]``.
        size: Height and width of the photos.
        ink: Cells of the sketches to average, see `pool_sketch`.
        photo_stride: See `QuerySegmentationHead.forward`.

    Returns:
        ``[B, H, W]`` in -1..1, bilinear between the centres of cells, float32 at least.

    Raises:
        ValueError: Shapes do not fit.
    """
    check_maps(sketch, photo)
    descriptor = pool_sketch(sketch, ink)
    with torch.autocast(photo.device.type, enabled=False):
        cells = F.normalize(at_least_float32(photo), dim=1)
        cosine = torch.einsum("bc,bchw->bhw", descriptor, cells)
        return _enlarge(cosine, size, photo_stride)


def pool_sketch(features: Tensor, ink: Tensor | None = None) -> Tensor:
    """L2-normalised descriptor of a whole sketch.

    Args:
        features: Map ``[B, C, h, w]``.
        ink: Cells to average, bool ``[B, h, w]``; None for all. A sketch without any is averaged
            over all cells.

    Returns:
        ``[B, C]``, float32 at least.

    Raises:
        ValueError: Shapes do not fit.
    """
    check_maps(features, features)
    features = at_least_float32(features)
    if ink is None:
        return F.normalize(features.mean((2, 3)), dim=1)
    expected = (features.shape[0], *features.shape[2:])
    if ink.shape != expected or ink.dtype != torch.bool:
        raise ValueError(
            f"expected ink as bool {list(expected)}, one per cell of the sketch's map, got "
            f"{ink.dtype} {list(ink.shape)}."
        )
    kept = (ink | ~ink.any((1, 2), keepdim=True))[:, None]
    return F.normalize(torch.where(kept, features, 0.0).sum((2, 3)), dim=1)


def ink_cells(
    sketch: Tensor, cells: tuple[int, int], stride: Stride | None = None, paper: float = PAPER
) -> Tensor:
    """Cells of a sketch's map that strokes run through.

    Args:
        sketch: Sketches on white, ``[B, 1 | 3, H, W]`` in -1..1.
        cells: Rows and columns of the map.
        stride: Pixels per cell of the map, whose last cells may reach beyond the sketch;
            None where the map spans the sketch exactly.
        paper: Pixels are ink where a channel is darker than this, in -1..1.

    Returns:
        bool ``[B, rows, columns]``.

    Raises:
        ValueError: Shapes do not fit.
    """
    if sketch.ndim != 4 or sketch.shape[1] not in (1, 3):
        raise ValueError(
            f"expected sketches [B, 1 or 3, H, W] in -1..1, got shape {list(sketch.shape)}."
        )
    ink = (sketch.amin(1, keepdim=True) < paper).float()
    if stride is not None:
        height, width = _covered(cells, stride, (sketch.shape[2], sketch.shape[3]))
        ink = F.pad(ink, (0, width - ink.shape[3], 0, height - ink.shape[2]))
    pooled = F.adaptive_max_pool2d(for_adaptive_pooling(ink, cells), cells)
    return pooled[:, 0].to(ink.device) > 0


def _enlarge(cosine: Tensor, size: tuple[int, int], stride: Stride | None) -> Tensor:
    covered = size if stride is None else _covered((cosine.shape[1], cosine.shape[2]), stride, size)
    enlarged = F.interpolate(cosine[:, None], covered, mode="bilinear", align_corners=False)
    return enlarged[:, 0, : size[0], : size[1]]


def _covered(cells: tuple[int, int], stride: Stride, size: tuple[int, int]) -> tuple[int, int]:
    """Pixels that a map's cells cover."""
    vertical, horizontal = stride_pair(stride)
    covered = (round(cells[0] * vertical), round(cells[1] * horizontal))
    if covered[0] < size[0] or covered[1] < size[1]:
        raise ValueError(
            f"{cells[0]} x {cells[1]} cells of {vertical:g} x {horizontal:g} px do not cover an "
            f"image of {size[0]} x {size[1]} px. Give the map's own stride and the size of the "
            "image it was made from."
        )
    return covered
