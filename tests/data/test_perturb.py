"""Hand-drawn variation: how much moves, how smoothly, and what does not change."""

from __future__ import annotations

import numpy as np
import pytest

from sketchfusion_plugins.data.perturb import PIECE, ROTATION, SCALE, SHIFT, perturb


def test_no_strength_changes_nothing() -> None:
    points = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    stroke = np.repeat(np.arange(4), 10)
    path, of, own = perturb(points, stroke, 0.0, np.random.default_rng(0))
    np.testing.assert_allclose(path[own], points, atol=1e-6)
    np.testing.assert_array_equal(of[own], stroke)


def test_long_pieces_are_divided_and_strokes_are_not_joined() -> None:
    points = np.array([[0, 0], [100, 0], [100, 1], [0, 50], [0, 50]], np.float32)
    stroke = np.array([0, 0, 0, 1, 1])
    path, of, own = perturb(points, stroke, 0.0, np.random.default_rng(0))
    assert own.sum() == 5
    assert np.flatnonzero(own).tolist() == [0, 32, 33, 34, 35]
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    assert steps[of[1:] == of[:-1]].max() <= 100 * PIECE + 1e-4
    assert path[1].tolist() == [3.125, 0]


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_rotation_scale_and_shift_have_the_stated_spread(strength: float) -> None:
    # Strokes so short that the sway along them is a shift; a frame that sets the extent to 1.
    count, length = 4000, 1e-3
    middles = np.random.default_rng(1).uniform(0.1, 0.9, (count, 2))
    pairs = middles[:, None] + np.array([[-length / 2, 0], [length / 2, 0]])
    frame = np.array([[0, 0], [1, 1]])
    points = np.concatenate([pairs.reshape(-1, 2), frame]).astype(np.float32)
    stroke = np.repeat(np.arange(count + 1), 2)
    path, _, own = perturb(points, stroke, strength, np.random.default_rng(2))
    moved = path[own][:-2].reshape(count, 2, 2).astype(np.float64)
    before = points[:-2].reshape(count, 2, 2).astype(np.float64)
    direction = moved[:, 1] - moved[:, 0]
    angle = np.arctan2(direction[:, 1], direction[:, 0])
    scale = np.log(np.linalg.norm(direction, axis=1) / (before[:, 1, 0] - before[:, 0, 0]))
    shift = moved.mean(1) - before.mean(1)
    # The sway bends even short pieces, so spreads exceed what rotation and scale alone give.
    assert ROTATION * strength * 0.95 < angle.std() < ROTATION * strength * 1.9
    assert SCALE * strength * 0.95 < scale.std() < SCALE * strength * 3.2
    assert SHIFT * strength * 0.95 < shift.std() < SHIFT * strength * 1.25
    assert abs(shift.mean(0)).max() < 4 * shift.std() / count**0.5


def test_a_straight_line_bends_smoothly() -> None:
    points = np.array([[0, 0], [1000, 0]], np.float32)
    path, _, _ = perturb(points, np.array([0, 0]), 0.5, np.random.default_rng(3))
    start, stop = path[0], path[-1]
    along = (stop - start) / np.linalg.norm(stop - start)
    away = (path - start) @ np.array([-along[1], along[0]])
    assert 2 < np.abs(away).max() < 60
    steps = np.diff(path, axis=0)
    turns = np.diff(np.unwrap(np.arctan2(steps[:, 1], steps[:, 0])))
    assert np.abs(turns).max() < np.deg2rad(10)


def test_strokes_move_independently_and_whole() -> None:
    line = np.stack([np.linspace(0, 100, 50), np.zeros(50)], 1)
    points = np.concatenate([line, line]).astype(np.float32)
    stroke = np.repeat([0, 1], 50)
    path, of, own = perturb(points, stroke, 0.5, np.random.default_rng(4))
    first, second = path[own & (of == 0)], path[own & (of == 1)]
    assert np.abs(first - second).max() > 1
    for moved in (first, second):
        steps = np.linalg.norm(np.diff(moved, axis=0), axis=1)
        # No point jumps from its neighbours, which are 2.04 apart.
        assert 1.0 < steps.min() <= steps.max() < 3.5


def test_the_sampling_of_a_path_does_not_change_its_shape() -> None:
    coarse = np.array([[0, 0], [320, 0]], np.float32)
    fine = np.stack([np.linspace(0, 320, 33), np.zeros(33)], 1).astype(np.float32)
    paths = [
        perturb(points, np.zeros(len(points), np.int64), 0.7, np.random.default_rng(5))[0]
        for points in (coarse, fine)
    ]
    np.testing.assert_allclose(paths[0], paths[1], atol=1e-3)
