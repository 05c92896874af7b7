"""Vector sketches and the one renderer that makes pictures of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sketchfusion_plugins.data.layout import IGNORED
from sketchfusion_plugins.data.perturb import perturb

if TYPE_CHECKING:
    from PIL import ImageDraw

MARGIN = 1 / 16
SMALLEST_SIDE = 16
# Beyond, float32 no longer tells neighbouring points apart.
LARGEST_COORDINATE = 1e6
# A drawing smaller than this in its own units is a dot.
SMALLEST_EXTENT = 1e-6
# Lines drawn this much larger and then reduced are smooth.
OVERSAMPLING = 4


@dataclass(frozen=True, eq=False)
class Strokes:
    """One vector sketch.

    Attributes:
        points: Points ``[N, 2]``, float32, x to the right, y downwards, in any unit.
        stroke: Stroke of every point ``[N]``, int64, not decreasing: the order of drawing.

    Raises:
        ValueError: No points, arrays that do not fit each other, coordinates that are not finite or
            beyond 1e6, strokes out of order.
    """

    points: NDArray[np.float32]
    stroke: NDArray[np.int64]

    def __post_init__(self) -> None:
        points, stroke = np.asarray(self.points), np.asarray(self.stroke)
        if points.ndim != 2 or points.shape[1] != 2 or stroke.shape != points.shape[:1]:
            raise ValueError(
                f"expected points [N, 2] and stroke [N], got {list(points.shape)} and "
                f"{list(stroke.shape)}."
            )
        if not len(points):
            raise ValueError("expected a sketch of at least one point, got none. Leave it out.")
        if points.dtype.kind not in "iuf" or stroke.dtype.kind not in "iu":
            raise ValueError(
                f"expected points of real numbers and stroke of whole ones, got {points.dtype} and "
                f"{stroke.dtype}."
            )
        low, high = float(points.min()), float(points.max())
        if not max(-low, high) <= LARGEST_COORDINATE:
            raise ValueError(
                f"expected finite coordinates within {LARGEST_COORDINATE:.0e}, got {low} to {high}."
            )
        if (stroke[1:] < stroke[:-1]).any():
            raise ValueError(
                "expected strokes in the order of drawing, got numbers that decrease. Sort the "
                "points by stroke."
            )
        object.__setattr__(self, "points", points.astype(np.float32, copy=False))
        object.__setattr__(self, "stroke", stroke.astype(np.int64, copy=False))

    @classmethod
    def from_paths(cls, paths: Sequence[ArrayLike]) -> Strokes:
        """Sketch of one array of points ``[n, 2]`` per stroke, in the order of drawing.

        Raises:
            ValueError: See the class.
        """
        arrays = [np.asarray(path, dtype=np.float64) for path in paths]
        for array in arrays:
            if array.ndim != 2 or array.shape[1] != 2:
                raise ValueError(f"expected strokes of points [n, 2], got {list(array.shape)}.")
        counts = [len(array) for array in arrays]
        points = np.concatenate([np.empty((0, 2)), *arrays])
        return cls(points, np.repeat(np.arange(len(counts)), counts))

    @property
    def bounds(self) -> NDArray[np.int64]:
        """Stroke i is the rows ``bounds[i]:bounds[i + 1]``."""
        steps = np.flatnonzero(np.diff(self.stroke)) + 1
        return np.array([0, *steps, len(self.stroke)], dtype=np.int64)


@dataclass(frozen=True)
class StrokeStyle:
    """How a vector sketch becomes a picture.

    Attributes:
        size: Side of the square picture in pixels, at least 16.
        width: Width of a stroke in pixels, above 0.
        margin: Blank border as a share of the side, 0 up to but not 0.5.
        stroke_dropout: Probability that a stroke is left out, 0..1. One stroke always stays.
        perturbation: Strength of hand-drawn variation, 0..1; see
            `sketchfusion_plugins.data.perturb`.
        keep: Level of abstraction: share of the strokes that is drawn, the first ones, above 0 up
            to 1. People draw outlines before details: "Sketch-a-Net: A Deep Neural Network that
            Beats Humans" (Yu et al., IJCV 2017) therefore removes late strokes first.

    Raises:
        ValueError: A value out of its range.
    """

    size: int = 224
    width: float = 2.0
    margin: float = MARGIN
    stroke_dropout: float = 0.0
    perturbation: float = 0.0
    keep: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < SMALLEST_SIDE:
            raise ValueError(
                f"size must be whole pixels, at least {SMALLEST_SIDE}, got {self.size}."
            )
        ranges = {
            "width": (0 < self.width <= self.size, f"above 0 and at most size={self.size}"),
            "margin": (0 <= self.margin < 0.5, "0 up to but not 0.5"),
            "stroke_dropout": (0 <= self.stroke_dropout <= 1, "0..1"),
            "perturbation": (0 <= self.perturbation <= 1, "0..1"),
            "keep": (0 < self.keep <= 1, "above 0 and at most 1"),
        }
        for name, (fits, expected) in ranges.items():
            if not fits:
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)}.")

    @property
    def varies(self) -> bool:
        """Whether the seed changes the picture."""
        return self.stroke_dropout > 0 or self.perturbation > 0


@dataclass(frozen=True, eq=False)
class LabelledPicture:
    """A rendered sketch whose strokes carry labels.

    Attributes:
        image: Black on white ``[size, size, 3]``.
        mask: Labels ``[size, size]``, `IGNORED` off strokes.
        strokes: What was drawn, in pixels; the pixel in row y, column x covers x..x+1, y..y+1.
        label: Label of every point that was drawn, ``[M]``.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    strokes: Strokes
    label: NDArray[np.int64]


def render(strokes: Strokes, style: StrokeStyle, seed: int | None = None) -> NDArray[np.uint8]:
    """Picture of a sketch.

    Args:
        strokes: The sketch.
        style: How to draw it.
        seed: Decides dropout and perturbation; None varies from call to call.

    Returns:
        Black on white ``[size, size, 3]``.
    """
    traced, kept, _ = _trace(strokes, style, seed)
    paths = [(path, 0) for path in _paths(traced, kept)]
    return _reduced(_canvas(style.size, 255, paths, style.width))


def render_labels(
    strokes: Strokes, label: NDArray[Any], style: StrokeStyle, seed: int | None = None
) -> LabelledPicture:
    """Picture of a sketch, the same as `render` makes, with the labels of its strokes.

    Where strokes cross, the later one is seen and labelled.

    Args:
        strokes: The sketch.
        label: Label of every point ``[N]``, 0..254; a stroke is labelled as its first point.
        style: How to draw it.
        seed: Decides dropout and perturbation; None varies from call to call.

    Raises:
        ValueError: Labels of another shape or range.
    """
    from PIL import Image

    label = np.asarray(label)
    if label.shape != strokes.stroke.shape or label.dtype.kind not in "iu":
        raise ValueError(
            f"expected a whole number per point as labels, [{len(strokes.stroke)}], got "
            f"{label.dtype} {list(label.shape)}."
        )
    if label.min() < 0 or label.max() >= IGNORED:
        raise ValueError(f"expected labels 0..{IGNORED - 1}, got {label.min()}..{label.max()}.")
    traced, kept, original = _trace(strokes, style, seed)
    firsts = label[strokes.bounds[:-1]][kept]
    paths = list(zip(_paths(traced, kept), firsts.tolist(), strict=True))
    # A label that is thinner than a pixel would slip between the pixels' centres.
    labels = _canvas(style.size, IGNORED, paths, max(1.0, style.width))
    if style.width >= 1:
        ink = labels.point([0] * IGNORED + [255])
    else:
        ink = _canvas(style.size, 255, [(path, 0) for path, _ in paths], style.width)
    mask = np.array(labels.resize((style.size, style.size), Image.Resampling.NEAREST))
    drawn = np.repeat(kept, np.diff(strokes.bounds))
    placed = Strokes(traced.points[original][drawn], strokes.stroke[drawn])
    return LabelledPicture(_reduced(ink), mask, placed, label[drawn].astype(np.int64))


def place(xy: NDArray[np.float32], size: int, margin: float = MARGIN) -> NDArray[np.float32]:
    """Fit a drawing into a picture: centred, its aspect ratio kept, with a margin.

    Args:
        xy: Points ``[N, 2]``.
        size: Side of the picture in pixels.
        margin: Blank border as a share of the side.

    Returns:
        Points ``[N, 2]`` in pixels; the pixel in row y, column x covers x..x+1, y..y+1.
    """
    low, high = xy.min(0), xy.max(0)
    extent = float((high - low).max())
    scale = size * (1 - 2 * margin) / (extent if extent > SMALLEST_EXTENT else 1.0)
    placed: NDArray[np.float32] = (xy - (low + high) / 2) * scale + size / 2
    return placed


def _trace(
    strokes: Strokes, style: StrokeStyle, seed: int | None
) -> tuple[Strokes, NDArray[np.bool_], NDArray[np.bool_]]:
    """Path of the pen in pixels, strokes ``[S]`` to keep, points ``[P]`` that are the sketch's."""
    generator = np.random.default_rng(seed)
    kept = _kept(len(strokes.bounds) - 1, style, generator)
    points, stroke = strokes.points, strokes.stroke
    original = np.ones(len(points), dtype=np.bool_)
    # A dot has no size that its variation could be measured by.
    if style.perturbation and np.ptp(points, axis=0).max() > SMALLEST_EXTENT:
        points, stroke, original = perturb(points, stroke, style.perturbation, generator)
    # Strokes that are left out leave a gap; they do not move the others.
    return Strokes(place(points, style.size, style.margin), stroke), kept, original


def _kept(count: int, style: StrokeStyle, generator: np.random.Generator) -> NDArray[np.bool_]:
    # Rounding up would keep a stroke too many where the product is whole but for its last bit.
    first = max(1, math.ceil(style.keep * count - 1e-9))
    draws = generator.random(first)
    kept = np.zeros(count, dtype=np.bool_)
    kept[:first] = draws >= style.stroke_dropout
    if not kept.any():
        kept[draws.argmax()] = True
    return kept


def _paths(traced: Strokes, kept: NDArray[np.bool_]) -> list[list[float]]:
    # A pixel's centre is at a half; Pillow draws through whole numbers.
    flat = (traced.points * OVERSAMPLING - 0.5).ravel().tolist()
    bounds = (2 * traced.bounds).tolist()
    return [flat[bounds[index] : bounds[index + 1]] for index in np.flatnonzero(kept).tolist()]


def _canvas(size: int, blank: int, paths: Sequence[tuple[list[float], int]], width: float) -> Any:
    """Oversampled one-channel picture of coloured paths."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (size * OVERSAMPLING, size * OVERSAMPLING), blank)
    pen = ImageDraw.Draw(canvas)
    for path, colour in paths:
        _line(pen, path, width * OVERSAMPLING, colour)
    return canvas


def _line(pen: ImageDraw.ImageDraw, path: list[float], width: float, colour: int) -> None:
    """Polyline ``x0, y0, x1, y1, ...`` with round ends and joints; a single point is a dot."""
    if len(path) > 2:
        pen.line(path, fill=colour, width=max(1, round(width)))
    radius = (width - 1) / 2
    for x, y in zip(path[::2], path[1::2], strict=True):
        if radius > 0.5:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        else:
            pen.point((round(x), round(y)), fill=colour)


def _reduced(canvas: Any) -> NDArray[np.uint8]:
    from PIL import Image

    size = canvas.width // OVERSAMPLING
    grey = np.asarray(canvas.resize((size, size), Image.Resampling.BOX))
    return np.repeat(grey[..., None], 3, 2)
