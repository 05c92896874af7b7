"""Hand-drawn variation: the same sketch as if drawn once more.

Every stroke is turned, scaled and shifted a little, and its path sways smoothly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Standard deviations at strength 1; lengths are shares of the drawing's longer side.
ROTATION = np.deg2rad(10.0)
SCALE = 0.1
SHIFT = 0.03
SWAY = 0.015
# Wave lengths of the sway; amplitudes fall with them, as smooth curves' do.
WAVE_LENGTHS = np.array([1.0, 0.5, 0.25])
AMPLITUDES = np.sqrt(2 * WAVE_LENGTHS / WAVE_LENGTHS.sum())
# Longest piece of a path that stays straight.
PIECE = 1 / 32


def perturb(
    points: NDArray[np.float32],
    stroke: NDArray[np.int64],
    strength: float,
    generator: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Vary a sketch.

    Args:
        points: ``[N, 2]``, not all in one place.
        stroke: Stroke of every point ``[N]``, not decreasing.
        strength: 0 for none, 1 for as much as leaves most sketches recognisable.
        generator: Source of chance.

    Returns:
        Points ``[P, 2]`` with P >= N, since long straight pieces are divided so that they can bend;
        stroke of every point ``[P]``; which points are the sketch's own ``[P]``, N of them.
    """
    extent = float(np.ptp(points, axis=0).max())
    path, stroke, own = _divided(points.astype(np.float64), stroke, PIECE * extent)
    _, index, counts = np.unique(stroke, return_inverse=True, return_counts=True)
    count = len(counts)

    angle = generator.normal(0, ROTATION * strength, count)[index]
    scale = np.exp(generator.normal(0, SCALE * strength, count))[index]
    shift = generator.normal(0, SHIFT * strength * extent, (count, 2))[index]
    phase = generator.uniform(0, 2 * np.pi, (count, len(WAVE_LENGTHS), 2))[index]

    sums = np.stack([np.bincount(index, path[:, axis]) for axis in (0, 1)], 1)
    centre = (sums / counts[:, None])[index]
    x, y = (path - centre).T * scale
    cosine, sine = np.cos(angle), np.sin(angle)
    turned = np.stack([cosine * x - sine * y, sine * x + cosine * y], 1)

    # Where a stroke begins along the common length does not matter: its phase is random.
    steps = np.linalg.norm(np.diff(path, axis=0, prepend=path[:1]), axis=1)
    turns = 2 * np.pi * np.cumsum(steps)[:, None] / (WAVE_LENGTHS * extent)
    waves = AMPLITUDES[:, None] * np.sin(turns[..., None] + phase)
    sway = SWAY * strength * extent * waves.sum(1)
    return (centre + turned + shift + sway).astype(np.float32), stroke, own


def _divided(
    points: NDArray[np.float64], stroke: NDArray[np.int64], longest: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Points so close that no piece of a stroke is longer than ``longest``."""
    steps = np.diff(points, axis=0, append=points[-1:])
    inside = np.append(stroke[1:] == stroke[:-1], False)
    lengths = np.linalg.norm(steps, axis=1)
    pieces = np.where(inside, np.maximum(1, np.ceil(lengths / longest)), 1).astype(np.int64)
    source = np.repeat(np.arange(len(points)), pieces)
    starts = np.cumsum(pieces) - pieces
    share = (np.arange(len(source)) - starts[source]) / pieces[source]
    return points[source] + share[:, None] * steps[source], stroke[source], share == 0
