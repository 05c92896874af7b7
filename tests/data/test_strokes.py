"""The renderer against geometry: where ink must be, what it is labelled, what chance may change."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sketchfusion_plugins.data.strokes import Strokes, StrokeStyle, place, render, render_labels

BOX = [(0, 0), (100, 0), (100, 60), (0, 60), (0, 0)]
FAR = 1e9
# Labels are sampled an eighth of a pixel off centre; Pillow rounds vertices to quarters of a pixel.
SLACK = 0.7


def scribble(seed: int, count: int = 3, length: int = 6) -> Strokes:
    generator = np.random.default_rng(seed)
    return Strokes.from_paths([generator.uniform(-50, 300, (length, 2)) for _ in range(count)])


def distances(strokes: Strokes, size: int, margin: float) -> NDArray[np.float64]:
    """Distance ``[S, size, size]`` from every pixel's centre to every stroke."""
    placed = place(strokes.points, size, margin).astype(np.float64)
    rows, columns = np.mgrid[:size, :size] + 0.5
    centres = np.stack([columns, rows], -1)
    result = []
    for start, stop in pairwise(strokes.bounds):
        path = placed[start:stop]
        nearest = np.linalg.norm(centres - path[0], axis=-1)
        for a, b in pairwise(path):
            length = max(((b - a) ** 2).sum(), 1e-12)
            along = np.clip(((centres - a) @ (b - a)) / length, 0, 1)[..., None]
            nearest = np.minimum(nearest, np.linalg.norm(centres - a - along * (b - a), axis=-1))
        result.append(nearest)
    return np.stack(result)


@pytest.mark.parametrize("size", [33, 97, 224])
@pytest.mark.parametrize(("width", "margin"), [(1.0, 0.0), (2.0, 0.0625), (7.5, 0.2)])
def test_ink_is_where_geometry_says(size: int, width: float, margin: float) -> None:
    strokes = scribble(size)
    image = render(strokes, StrokeStyle(size, width, margin))
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert (image == image[..., :1]).all()
    nearest = distances(strokes, size, margin).min(0)
    # A pixel's centre is at most 0.71 px from its corners; Pillow rounds to quarters of a pixel.
    assert (image[..., 0][nearest > width / 2 + 1.1] == 255).all()
    assert (image[..., 0][nearest < width / 2 - 1.1] == 0).all()
    ink = 1 - image[..., 0].mean() / 255
    assert ink == pytest.approx((nearest < width / 2).mean(), rel=0.25)


@pytest.mark.parametrize("width", [0.4, 2.0, 5.0])
def test_labels_are_those_of_the_nearest_stroke(width: float) -> None:
    strokes = scribble(5, count=4)
    label = np.array([7, 0, 254, 3])[strokes.stroke]
    picture = render_labels(strokes, label, StrokeStyle(101, width))
    away = distances(strokes, 101, 1 / 16)
    order = np.sort(away, 0)
    reach = max(1.0, width) / 2
    alone = (order[0] < reach - SLACK) & (order[1] > reach + SLACK)
    expected = np.array([7, 0, 254, 3])[away.argmin(0)]
    assert (picture.mask[alone] == expected[alone]).all()
    assert (picture.mask[order[0] > reach + SLACK] == 255).all()
    assert picture.mask.dtype == np.uint8
    np.testing.assert_array_equal(picture.label, label)
    np.testing.assert_array_equal(picture.strokes.points, place(strokes.points, 101))


def test_the_later_stroke_covers_the_earlier() -> None:
    strokes = Strokes.from_paths([[(0, 50), (100, 50)], [(50, 0), (50, 100)]])
    for label in ([4, 9], [9, 4]):
        picture = render_labels(strokes, np.array(label)[strokes.stroke], StrokeStyle(64, 4.0))
        assert (picture.mask[31:33, 31:33] == label[1]).all()


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("dropout", "perturbation", "keep"), [(0, 0, 1), (0.5, 0.5, 0.7)])
def test_labels_do_not_change_the_picture(
    width: float, dropout: float, perturbation: float, keep: float
) -> None:
    style = StrokeStyle(65, width, 0.1, dropout, perturbation, keep)
    strokes = scribble(1, count=9)
    picture = render_labels(strokes, strokes.stroke, style, seed=3)
    np.testing.assert_array_equal(picture.image, render(strokes, style, seed=3))


def test_units_and_place_do_not_matter() -> None:
    strokes = scribble(2)
    style = StrokeStyle(64)
    # Powers of two, so that float32 is exact.
    for scale, shift in ((2.0**-10, 0.0), (64.0, 4096.0)):
        moved = Strokes(np.round(strokes.points) * scale + shift, strokes.stroke)
        whole = Strokes(np.round(strokes.points), strokes.stroke)
        np.testing.assert_array_equal(render(moved, style), render(whole, style))


@pytest.mark.parametrize(
    "paths",
    [[[(5, 5)]], [[(5, 5)] * 4], [[(5, 5)], [(5, 5)]], [[(1e6, 1e6)]]],
    ids=["dot", "equal points", "dots on one place", "far dot"],
)
@pytest.mark.parametrize("perturbation", [0.0, 1.0])
def test_a_dot_is_drawn_in_the_middle(paths: Any, perturbation: float) -> None:
    picture = render_labels(
        Strokes.from_paths(paths),
        np.zeros(sum(map(len, paths)), np.int64),
        StrokeStyle(32, 3.0, perturbation=perturbation),
        seed=0,
    )
    rows, columns = np.nonzero(picture.mask == 0)
    assert 5 <= len(rows) <= 12
    assert abs(rows - 15.5).max() <= 2
    assert abs(columns - 15.5).max() <= 2
    assert (picture.image[15:17, 15:17] == 0).all()


def test_dots_beside_strokes() -> None:
    strokes = Strokes.from_paths([BOX, [(50, 30)]])
    picture = render_labels(strokes, strokes.stroke, StrokeStyle(80, 2.0))
    assert (picture.mask[39:41, 39:41] == 1).all()
    assert (picture.image[39:41, 39:41] < 64).all()


def test_a_very_long_drawing() -> None:
    turns = np.linspace(0, 400, 60_000)
    spiral = np.stack([turns * np.cos(turns), turns * np.sin(turns)], 1)
    image = render(Strokes.from_paths([spiral]), StrokeStyle(64, 1.0, perturbation=0.2), seed=0)
    assert image.min() == 0


def test_numbers_of_strokes_may_have_gaps() -> None:
    points = np.array([[0, 0], [9, 9], [9, 0], [0, 9]])
    gaps, plain = Strokes(points, np.array([3, 3, 8, 8])), Strokes(points, np.array([0, 0, 1, 1]))
    assert gaps.bounds.tolist() == [0, 2, 4]
    style = StrokeStyle(32, stroke_dropout=0.5, perturbation=0.5)
    for seed in range(4):
        np.testing.assert_array_equal(render(gaps, style, seed), render(plain, style, seed))


@pytest.mark.parametrize(
    ("keep", "count", "drawn"),
    [(1.0, 10, 10), (0.5, 10, 5), (0.3, 10, 3), (0.7, 10, 7), (0.01, 10, 1), (0.5, 3, 2)],
)
def test_keep_draws_the_first_strokes(keep: float, count: int, drawn: int) -> None:
    strokes = scribble(0, count)
    picture = render_labels(strokes, strokes.stroke, StrokeStyle(64, keep=keep))
    assert np.unique(picture.label).tolist() == list(range(drawn))
    # What stays does not move.
    here = strokes.stroke < drawn
    np.testing.assert_array_equal(picture.strokes.points, place(strokes.points, 64)[here])
    assert set(np.unique(picture.mask)) <= {255, *range(drawn)}


def test_dropout_leaves_out_the_share_it_says() -> None:
    strokes = Strokes.from_paths([[(i, 0), (i, 1)] for i in range(100)])
    style = StrokeStyle(16, stroke_dropout=0.3)
    counts = [
        len(np.unique(render_labels(strokes, strokes.stroke, style, seed).label))
        for seed in range(60)
    ]
    # 6000 draws: a standard error of 0.6 %.
    assert np.mean(counts) / 100 == pytest.approx(0.7, abs=0.025)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_dropout_never_removes_the_last_stroke(count: int) -> None:
    strokes = scribble(4, count)
    style = StrokeStyle(32, stroke_dropout=1.0)
    left = [render_labels(strokes, strokes.stroke, style, seed).label for seed in range(20)]
    assert all(len(set(label)) == 1 for label in left)
    # Which one it is is left to chance.
    assert len({int(label[0]) for label in left}) >= min(count, 2)


def test_the_seed_alone_decides() -> None:
    strokes = scribble(6, count=8)
    style = StrokeStyle(48, stroke_dropout=0.3, perturbation=0.4)
    np.random.seed(0)
    first = render(strokes, style, seed=11)
    np.random.seed(1)
    np.testing.assert_array_equal(first, render(strokes, style, seed=11))
    pictures = {render(strokes, style, seed).tobytes() for seed in range(10)}
    assert len(pictures) == 10
    assert len({render(strokes, style).tobytes() for _ in range(5)}) == 5
    plain = StrokeStyle(48, keep=0.5)
    assert not plain.varies
    assert len({render(strokes, plain, seed).tobytes() for seed in (None, 0, 1)}) == 1


@pytest.mark.parametrize("seed", range(4))
def test_perturbed_points_stay_in_the_frame_and_on_their_ink(seed: int) -> None:
    strokes = scribble(seed, count=5)
    style = StrokeStyle(90, 2.0, margin=0.1, perturbation=1.0)
    picture = render_labels(strokes, strokes.stroke, style, seed)
    points = picture.strokes.points
    assert len(points) == len(strokes.points)
    assert points.min() >= 9 - 1e-3
    assert points.max() <= 81 + 1e-3
    columns, rows = np.floor(points).astype(int).T
    under = picture.mask[rows, columns]
    # Only a later stroke hides a point.
    assert (under != 255).all()
    assert (under >= picture.label).all()
    assert (under == picture.label).mean() > 0.7


@pytest.mark.parametrize(
    ("points", "stroke", "message"),
    [
        (np.empty((0, 2)), np.empty(0, np.int64), "at least one point"),
        (
            np.zeros((3, 3)),
            np.zeros(3, np.int64),
            r"and stroke \[N\], got \[3, 3\]",
        ),
        (np.zeros((3, 2)), np.zeros(2, np.int64), r"got \[3, 2\] and \[2\]"),
        (np.array([[0, np.nan]]), np.zeros(1, np.int64), "finite coordinates .* got nan"),
        (np.array([[0, -np.inf]]), np.zeros(1, np.int64), "finite coordinates .* got -inf"),
        (np.array([[0, FAR]]), np.zeros(1, np.int64), r"within 1e\+06, got 0.0 to 1000000000.0"),
        (np.zeros((2, 2)), np.array([1, 0]), "numbers that decrease"),
        (np.zeros((2, 2)), np.array([0.0, 1.0]), "stroke of whole ones, got float64 and float64"),
        (np.zeros((2, 2), complex), np.array([0, 1]), "real numbers"),
    ],
)
def test_strokes_that_cannot_be(points: Any, stroke: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Strokes(points, stroke)


def test_paths_of_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"points \[n, 2\], got \[2, 3\]"):
        Strokes.from_paths([[(0, 0, 0), (1, 1, 1)]])
    with pytest.raises(ValueError, match="at least one point"):
        Strokes.from_paths([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 8}, "size must be whole pixels, at least 16, got 8"),
        ({"size": 64.0}, "size must be whole pixels"),
        ({"width": 0.0}, "width must be above 0 and at most size=224, got 0.0"),
        ({"width": float("nan")}, "width must be"),
        ({"margin": 0.5}, "margin must be 0 up to but not 0.5"),
        ({"stroke_dropout": 1.1}, r"stroke_dropout must be 0\.\.1, got 1.1"),
        ({"perturbation": -0.1}, r"perturbation must be 0\.\.1"),
        ({"keep": 0.0}, "keep must be above 0 and at most 1"),
    ],
)
def test_styles_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StrokeStyle(**changes)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros(2, np.int64), r"\[5\], got int64 \[2\]"),
        (np.zeros(5), r"got float64 \[5\]"),
        (np.full(5, 255), r"labels 0\.\.254, got 255\.\.255"),
        (np.full(5, -1), r"labels 0\.\.254, got -1\.\.-1"),
    ],
)
def test_labels_that_cannot_be(label: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_labels(Strokes.from_paths([BOX]), label, StrokeStyle(32))
