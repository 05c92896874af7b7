"""Grounds behind pictures that were drawn on white: photographs have one, emoji have none."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, binary_fill_holes
from torch import Tensor


def solid(pictures: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """What pictures on white ``[N, S, S, 3]`` cover: what isn't white, and what that encloses."""
    inked = pictures.min(-1) < 245
    return np.stack([binary_fill_holes(ink) for ink in inked])


def on_grounds(pictures: Tensor, generator: torch.Generator, share: float = 0.5) -> Tensor:
    """Pictures on white, ``share`` of them on coloured grounds instead.

    A ground is one colour, from nearly white to any, that shades off to others at the corners.

    Args:
        pictures: ``[B, 3, H, W]`` in -1..1.
        generator: Source of the grounds.
        share: Chance of a ground, 0..1.
    """
    chosen = (torch.rand(len(pictures), generator=generator) < share).nonzero()[:, 0]
    count = len(chosen)
    if not count:
        return pictures
    strength, spread = torch.rand(2, count, 1, 1, 1, generator=generator)
    flat = 1 - strength * torch.rand((count, 3, 1, 1), generator=generator)
    corners = 1 - strength * torch.rand((count, 3, 2, 2), generator=generator)
    shading = F.interpolate(corners, pictures.shape[2:], mode="bilinear", align_corners=True)
    ground = flat + spread * (shading - flat)

    values = (pictures[chosen] + 1) / 2
    covered = solid((values * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    # Edges are half white: times the ground they are half ground, as if drawn upon it.
    inside = np.stack([binary_erosion(mask, border_value=1) for mask in covered])
    values = torch.where(torch.from_numpy(inside)[:, None], values, values * ground)
    return pictures.index_copy(0, chosen, values * 2 - 1)
