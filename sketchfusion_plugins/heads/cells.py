"""Cells of a map and pixels of its image: where cells lie, and descriptors at points.

Points are ``(x, y)`` in pixels and pixel ``(row, column)`` covers ``column..column + 1`` by
``row..row + 1``. A map's cell ``(i, j)`` covers ``stride`` such pixels each way, so its centre is
``((j + 0.5) * stride, (i + 0.5) * stride)``. The stride is given rather than derived from the
image's size: the last cells of a map may reach beyond an image that is no multiple of it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

# Pixels per cell: one number, or (vertical, horizontal).
Stride: TypeAlias = float | tuple[float, float]


def pool_to_grid(features: Tensor, grid: int) -> Tensor:
    """Means of a map ``[B, C, h, w]`` over ``grid`` x ``grid`` parts, ``[B, C, grid, grid]``."""
    pooled = F.adaptive_avg_pool2d(for_adaptive_pooling(features, (grid, grid)), grid)
    return pooled.to(features.device)


def for_adaptive_pooling(features: Tensor, cells: tuple[int, int]) -> Tensor:
    """A map ``[B, C, h, w]``, on the CPU where Apple's adaptive pooling is wrong or refuses it.

    It takes multiples of the cells alone (pytorch#96056).
    """
    rows, columns = cells
    uneven = features.device.type == "mps" and (
        features.shape[-2] % rows or features.shape[-1] % columns
    )
    return features.cpu() if uneven else features


def sample_descriptors(
    features: Tensor, points: Tensor, stride: Stride, visible: Tensor | None = None
) -> Tensor:
    """L2-normalised descriptors at points, bilinear between the centres of cells.

    Args:
        features: Map ``[B, C, h, w]``.
        points: ``[B, N, 2]`` in pixels; beyond the outermost centres the border's descriptor holds.
        stride: Pixels per cell.
        visible: bool ``[B, N]``; None for all. The others get the first cell's descriptor.

    Returns:
        ``[B, N, C]``, float32 at least.

    Raises:
        ValueError: Shapes do not fit, or a visible point is not finite.
    """
    check_maps(features, features)
    visible = visible_points(points, visible).to(features.device)
    # Not their len, which an exported program holds fast.
    if points.shape[0] != features.shape[0]:
        raise ValueError(
            f"expected points of {features.shape[0]} images as the map has, got {points.shape[0]}."
        )
    vertical, horizontal = stride_pair(stride)
    with torch.autocast(features.device.type, enabled=False):
        normalized = F.normalize(at_least_float32(features), dim=1)
        extent = normalized.new_tensor(
            [features.shape[3] * horizontal, features.shape[2] * vertical]
        )
        inside = torch.where(visible[..., None], points.to(normalized), 0.0)
        sampled = F.grid_sample(
            normalized,
            (2.0 * inside / extent - 1.0)[:, None],
            padding_mode="border",
            align_corners=False,
        )
        return F.normalize(sampled[:, :, 0].transpose(1, 2), dim=2)


def grid_descriptors(features: Tensor) -> Tensor:
    """L2-normalised descriptors of all cells, ``[B, h * w, C]``, float32 at least."""
    return F.normalize(at_least_float32(features).flatten(2).transpose(1, 2), dim=2)


def cell_centres(features: Tensor, stride: Stride) -> Tensor:
    """Centres of a map's cells in pixels, row by row, ``[h * w, 2]`` as ``(x, y)``, float32."""
    vertical, horizontal = stride_pair(stride)
    rows = torch.arange(features.shape[-2], device=features.device) + 0.5
    columns = torch.arange(features.shape[-1], device=features.device) + 0.5
    y, x = torch.meshgrid(rows * vertical, columns * horizontal, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def stride_pair(stride: Stride) -> tuple[float, float]:
    """A stride as (vertical, horizontal) pixels per cell.

    Raises:
        ValueError: Not one or two numbers above 0.
    """
    pair = tuple(stride) if isinstance(stride, (tuple, list)) else (stride, stride)
    if len(pair) != 2 or not all(0 < side < float("inf") for side in pair):
        raise ValueError(
            "a stride is the pixels per cell, one number above 0 or a pair (vertical, horizontal), "
            f"got {stride!r}."
        )
    return float(pair[0]), float(pair[1])


def visible_points(points: Tensor, visible: Tensor | None) -> Tensor:
    """Check points and say which there are, bool ``[B, N]`` on the points' device.

    Raises:
        ValueError: Shapes do not fit, or a visible point is not finite.
    """
    if points.ndim != 3 or points.shape[2] != 2:
        raise ValueError(
            f"expected points [B, N, 2] as (x, y) in pixels, got shape {list(points.shape)}."
        )
    if visible is None:
        visible = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    if visible.shape != points.shape[:2] or visible.dtype != torch.bool:
        raise ValueError(
            f"expected visible as bool {list(points.shape[:2])}, one per point, got "
            f"{visible.dtype} {list(visible.shape)}."
        )
    visible = visible.to(points.device)
    finite = points.isfinite().all(dim=2) | ~visible
    if not torch.compiler.is_compiling() and not bool(finite.all()):
        raise ValueError(
            f"{int((~finite).sum())} visible point(s) are NaN or infinite. Mark points that an "
            "image lacks as not visible."
        )
    return visible


def check_maps(source: Tensor, target: Tensor) -> None:
    """Refuse maps that cannot be compared.

    Raises:
        ValueError: Not two floating point maps of the same batch size and channels.
    """
    for features in (source, target):
        if features.ndim != 4 or not features.is_floating_point() or 0 in features.shape[1:]:
            raise ValueError(
                f"expected a floating point map [B, C, h, w], got {features.dtype} "
                f"{list(features.shape)}."
            )
    if source.shape[:2] != target.shape[:2]:
        raise ValueError(
            "source and target maps must share batch size and channels, got "
            f"{list(source.shape)} and {list(target.shape)}. Encode both with one encoder."
        )


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32; the rest as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def require_kornia() -> None:
    """Say how to get kornia where it is missing.

    Raises:
        ModuleNotFoundError: kornia is not installed.
    """
    if find_spec("kornia") is None:
        raise ModuleNotFoundError(
            'kornia is needed to match features: pip install "sketchfusion-plugins[tasks]"'
        )
