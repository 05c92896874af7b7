"""Clean line drawings as the strokes of a pen, so that a hand can vary them."""

from __future__ import annotations

import io

import numpy as np
from svgelements import SVG, Close, Line, Move, Path, Shape

from sketchfusion_plugins.data.openmoji import line_svg
from sketchfusion_plugins.data.strokes import Strokes

# Points per curve; OpenMoji's curves are short.
POINTS = 12
# Closer points, in units of OpenMoji's 72, are one.
CLOSE = 0.05


def strokes_of(svg: bytes) -> Strokes:
    """Line drawing of an OpenMoji SVG, one stroke for every outline, in the order of painting.

    What is painted as an area, such as a black eye, is drawn by its outline.

    Args:
        svg: The coloured drawing.

    Raises:
        ValueError: It has no line layer, or no line in it.
    """
    drawing = SVG.parse(io.BytesIO(line_svg(svg)))
    outlines = [
        points
        for shape in drawing.elements()
        if isinstance(shape, Shape)
        for outline in abs(Path(shape)).as_subpaths()
        if len(points := _points(Path(outline))) > 0
    ]
    return Strokes.from_paths(outlines)


def _points(outline: Path) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for segment in outline:
        if isinstance(segment, Move):
            shares = np.array([1.0])
        elif isinstance(segment, Line | Close):
            shares = np.array([0.0, 1.0])
        else:
            shares = np.linspace(0, 1, POINTS)
        for share in shares if segment.end is not None else ():
            point = segment.point(float(share))
            near = points and abs(point.x - points[-1][0]) + abs(point.y - points[-1][1]) < CLOSE
            if not near:
                points.append((point.x, point.y))
    return points
