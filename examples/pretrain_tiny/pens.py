"""Pens and hands: how drawings of one thing differ."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sources import SIZE
from torch import Tensor

from sketchfusion_plugins.data.strokes import Strokes, StrokeStyle


def random_style(draw: np.random.Generator) -> StrokeStyle:
    """A pen and a hand."""
    return StrokeStyle(
        size=SIZE,
        width=float(draw.uniform(0.8, 4.0)),
        margin=float(draw.uniform(0.03, 0.2)),
        stroke_dropout=0.1 * float(draw.random() < 0.3),
        perturbation=float(draw.uniform(0.1, 0.8)),
    )


def turned(strokes: Strokes, draw: np.random.Generator, mirrored: bool) -> Strokes:
    """A drawing turned up to 20 degrees and stretched."""
    angle = np.deg2rad(draw.uniform(-20, 20))
    stretch = np.exp(draw.uniform(-0.15, 0.15))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    scale = np.array([-stretch if mirrored else stretch, 1 / stretch])
    return Strokes((strokes.points * scale) @ turn, strokes.stroke)


def restyle(lines: Tensor, draw: np.random.Generator, thin: bool = False) -> Tensor:
    """Other pens and inks; line drawings ``[B, 3, H, W]`` in -1..1, ``thin`` if lines may be."""
    count = len(lines)
    pen = torch.from_numpy(draw.random(count))[:, None, None, None]
    lines = torch.where(pen < 0.3, -F.max_pool2d(-lines, 3, 1, 1), lines)
    if thin:
        lines = torch.where(pen > 0.6, F.max_pool2d(lines, 3, 1, 1), lines)
    ink = torch.from_numpy(draw.uniform(0.0, 0.5, (count, 1, 1, 1))).float()
    colour = torch.from_numpy(draw.uniform(0.0, 0.6, (count, 3, 1, 1))).float()
    coloured = torch.from_numpy(draw.random((count, 1, 1, 1)) < 0.3)
    ink = torch.where(coloured, colour, ink.expand_as(colour))
    return 1 - (1 - lines) * (1 - ink)
