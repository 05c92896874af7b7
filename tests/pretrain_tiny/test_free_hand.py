"""Strokes of clean line drawings, held against resvg's picture of them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sketchfusion_plugins.data.openmoji import line_svg, rasterise
from sketchfusion_plugins.data.openmoji_drawings import Drawings

Load = Callable[[str], ModuleType]
SIDE, VIEW = 288, 72


def _svg(lines: str) -> bytes:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {VIEW} {VIEW}"><g id="line" '
        f'fill="none" stroke="#000" stroke-width="2">{lines}</g></svg>'
    ).encode()


def test_a_turned_rectangle(load: Load) -> None:
    lines = '<rect x="10" y="20" width="30" height="10" transform="translate(60 0) rotate(90)"/>'
    strokes = load("free_hand").strokes_of(_svg(lines))
    # Turned by 90 degrees (x, y) is at (-y, x), then 60 to the right.
    corners = {(40, 10), (40, 40), (30, 40), (30, 10)}
    assert {tuple(point) for point in strokes.points.round(3).tolist()} == corners
    assert strokes.points[0].tolist() == pytest.approx(strokes.points[-1].tolist())


def test_a_stroke_for_every_outline(load: Load) -> None:
    lines = '<path d="M0 0 L10 0 M20 20 L30 20 L30 30"/><circle cx="50" cy="50" r="8"/>'
    strokes = load("free_hand").strokes_of(_svg(lines))
    assert np.unique(strokes.stroke).tolist() == [0, 1, 2]
    assert strokes.points[strokes.stroke == 1].tolist() == [[20, 20], [30, 20], [30, 30]]
    radii = np.linalg.norm(strokes.points[strokes.stroke == 2] - 50, axis=1)
    np.testing.assert_allclose(radii, 8, atol=0.01)


def test_strokes_lie_on_the_ink(load: Load, drawings: Drawings) -> None:
    """Of drawings by OpenMoji's artists, whatever elements and transforms they wrote."""
    strokes_of = load("free_hand").strokes_of
    for concept in drawings.concepts:
        svg = concept.svg.read_bytes()
        picture = torch.from_numpy(rasterise(line_svg(svg), SIDE))[..., 0].float()
        # Lines are 8 pixels wide here; an area's outline is within half a line of its edge.
        near = -F.max_pool2d(-picture[None], 5, 1, 2)[0] < 128
        columns, rows = (strokes_of(svg).points.T * SIDE / VIEW).astype(np.int64)
        inside = (rows >= 0) & (rows < SIDE) & (columns >= 0) & (columns < SIDE)
        assert inside.all(), concept.name
        assert near[rows, columns].all(), concept.name


def test_a_drawing_without_lines_is_refused(load: Load) -> None:
    with pytest.raises(ValueError, match="at least one point"):
        load("free_hand").strokes_of(_svg(""))
