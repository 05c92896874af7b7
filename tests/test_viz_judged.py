"""Figures with a judgement: right and wrong matches and results, classes with a legend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sketchfusion_plugins.viz import draw_matches, draw_segmentation, retrieval_grid

pytest.importorskip("matplotlib")

BLUE, VERMILION = (0, 114, 178), (213, 94, 0)
WHITE = np.full((40, 60, 3), 255, dtype=np.uint8)


def _shown(figure: Any) -> np.ndarray:
    """Pixels of the drawn figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def _count(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels - colour).max(-1) < 12).sum())


def _bytes(colour: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(round(255 * channel) for channel in colour[:3])


def _legend(figure: Any) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_matches_are_judged_by_their_distance_to_the_truth() -> None:
    source = np.array([[5.0, 5.0], [30.0, 20.0], [50.0, 30.0]])
    truth = torch.tensor([[10.0, 10.0], [30.0, 20.0], [50.0, 30.0]])
    # Exactly at the threshold, a hair beyond it, and right on the place.
    found = truth + torch.tensor([[3.0, 4.0], [0.0, 5.01], [0.0, 0.0]])
    figure = draw_matches(WHITE, WHITE, source, found, truth, threshold=5)
    assert _legend(figure) == ["right, within 5 px: 2", "wrong, beyond 5 px: 1", "true place"]
    lines = [(line.get_edgecolor(), line.get_linestyle()) for line in figure.artists]
    styles = {(_bytes(colour), line) for colour, line in lines}
    assert len(lines) == 3
    assert {colour for colour, _ in styles} == {BLUE, VERMILION}
    # Without colour the two kinds still differ.
    assert len({line for _, line in styles}) == 2
    pixels = _shown(figure)
    assert _count(pixels, BLUE) > 500 and _count(pixels, VERMILION) > 200


def test_matches_that_are_all_right_have_no_true_places() -> None:
    points = np.array([[5.0, 5.0], [30.0, 20.0]])
    figure = draw_matches(WHITE, WHITE, points, points, points, threshold=0)
    assert _legend(figure) == ["right, within 0 px: 2", "wrong, beyond 0 px: 0"]


def test_legend_of_matches_covers_no_picture() -> None:
    black = np.zeros_like(WHITE)
    points = np.array([[5.0, 5.0]])
    figure = draw_matches(black, black, points, points + 20, points, threshold=1)
    pixels = _shown(figure)
    # 4 inches of pictures at 150 dpi, and the legend on white below.
    assert (pixels[:600].max(-1) == 0).any() and not (pixels[600:].max(-1) == 0).all(1).any()
    assert _count(pixels[:600], (255, 255, 255)) < 0.05 * pixels[:600, :, 0].size
    assert _count(pixels[600:], (255, 255, 255)) > 0.8 * pixels[600:, :, 0].size


@pytest.mark.parametrize(
    ("truth", "threshold", "message"),
    [
        (np.zeros((1, 2)), None, "together"),
        (None, 3.0, "together"),
        (np.zeros((2, 2)), 3.0, r"true_points must be finite \[1, 2\]"),
        (np.full((1, 2), np.nan), 3.0, "true_points must be finite"),
        (np.zeros((1, 2)), -1.0, "threshold must be"),
        (np.zeros((1, 2)), float("nan"), "threshold must be"),
    ],
)
def test_matches_refuse_a_bad_truth(truth: Any, threshold: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_matches(WHITE, WHITE, np.ones((1, 2)), np.ones((1, 2)), truth, threshold)


def test_results_stand_beside_their_query_with_their_frames() -> None:
    wide, tensor = np.full((20, 50, 3), 200, np.uint8), torch.full((33, 33, 3), 0.5)
    figure = retrieval_grid(
        [WHITE, tensor], [[wide, tensor, WHITE], [tensor]], [[True, False, False], [True]], "ab"
    )
    boxes = [axes.get_position() for axes in figure.axes]
    assert len(boxes) == 6
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["a", "b"]
    lefts = [box.x0 for box in boxes[:4]]
    assert lefts == sorted(lefts) and boxes[4].y0 < boxes[0].y0
    spines = [axes.spines["left"] for axes in figure.axes]
    kinds = [(_bytes(spine.get_edgecolor()), spine.get_linestyle()) for spine in spines]
    assert [colour for colour, _ in kinds[1:4]] == [BLUE, VERMILION, VERMILION]
    assert kinds[5] == kinds[1] and kinds[1][1] != kinds[2][1]
    assert kinds[0][0] not in (BLUE, VERMILION)
    assert _legend(figure) == ["right", "wrong"]
    assert [text.get_text() for text in figure.texts] == ["query", "1", "2", "3"]
    # Dashes have gaps: fewer vermilion pixels per frame than blue ones.
    pixels = _shown(retrieval_grid([WHITE], [[WHITE, WHITE]], [[True, False]]))
    assert 0.4 < _count(pixels, VERMILION) / _count(pixels, BLUE) < 0.8


def test_results_without_judgement_have_no_frames_and_no_legend() -> None:
    figure = retrieval_grid([WHITE], [[WHITE, WHITE]])
    assert not figure.legends
    assert _count(_shown(figure), BLUE) == _count(_shown(figure), VERMILION) == 0


@pytest.mark.parametrize(
    ("queries", "results", "right", "labels", "message"),
    [
        ([], [], None, None, "at least one query"),
        ([WHITE], [], None, None, "0 rows of up to 0 results for 1 queries"),
        ([WHITE], [[]], None, None, "up to 0 results"),
        ([WHITE], [[WHITE]], [[True, False]], None, r"\[1\] results by query, \[2\] judgements"),
        ([WHITE], [[WHITE]], [], None, "right must judge every result"),
        ([WHITE], [[WHITE]], None, ["a", "b"], "2 row labels for 1 rows"),
        ([WHITE], [[WHITE[None]]], None, None, "'result 0 of query 0' must be"),
        ([WHITE.astype(int)], [[WHITE]], None, None, "'query 0' must be uint8 or float"),
    ],
)
def test_retrieval_refuses_what_does_not_fit(
    queries: Any, results: Any, right: Any, labels: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_grid(queries, results, right, labels)


def test_classes_have_the_colour_that_the_legend_names() -> None:
    pictures = np.full((1, 30, 30, 3), 255, dtype=np.uint8)
    classes = np.zeros((1, 30, 30), dtype=np.uint8)
    classes[:, :10], classes[:, 20:] = 3, 255
    figure = draw_segmentation(
        pictures, {"truth": classes}, ["paper", "ear", "eye", "tail"], ignored=(0, 255)
    )
    assert _legend(figure) == ["tail"]
    shown = figure.axes[1].images[0].get_array()
    assert (shown[10:] == 1).all()
    (patch,) = figure.legends[0].get_patches()
    red, green, blue, alpha = patch.get_facecolor()
    expected = alpha * np.array([red, green, blue]) + 1 - alpha
    np.testing.assert_allclose(shown[:10], np.broadcast_to(expected, (10, 30, 3)), atol=1e-6)
    assert [axes.get_title() for axes in figure.axes] == ["picture", "truth"]


def test_a_class_has_one_colour_in_all_pictures_and_columns() -> None:
    pictures = torch.ones(2, 8, 9, 3)
    truth = torch.zeros(2, 8, 9, dtype=torch.int64)
    truth[1] = 2
    guess = torch.full((2, 8, 9), 2)
    figure = draw_segmentation(pictures, {"truth": truth, "guess": guess}, "abc")
    cells = [axes.images[0].get_array()[0, 0].tolist() for axes in figure.axes]
    # Column by column: pictures, truth, guess.
    assert cells[3] == cells[4] == cells[5] != cells[2]
    assert _legend(figure) == ["a", "c"]


def test_classes_beyond_seven_are_grey_and_counted() -> None:
    classes = np.repeat(np.arange(10), 10)
    classes[classes == 9] = 4
    labels = classes.reshape(1, 10, 10)
    names = [f"class {number}" for number in range(10)]
    figure = draw_segmentation(np.ones((1, 10, 10, 3)), {"all": labels}, names)
    # Class 4 has most pixels, of the others the first ones are kept.
    assert _legend(figure) == [*(f"class {number}" for number in range(7)), "other (2 classes)"]
    shown = figure.axes[1].images[0].get_array()
    assert len({tuple(color) for color in shown.reshape(-1, 3).tolist()}) == 8
    np.testing.assert_array_equal(shown[7], shown[8])
    pixels = _shown(figure)
    assert (pixels[0] == 255).all() and (pixels[-1] == 255).all()


def test_legend_of_long_names_stays_in_the_figure() -> None:
    names = [f"a rather long name of class {number}" for number in range(7)]
    labels = np.arange(7).repeat(7).reshape(1, 7, 7)
    figure = draw_segmentation(np.ones((1, 7, 7, 3)), {"all": labels}, names)
    _shown(figure)
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1
    assert box.y1 <= min(axes.get_window_extent().y0 for axes in figure.axes)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((1, 4, 5), int), r"'x' must be integers \[1, 4, 4\]"),
        (np.zeros((1, 4, 4)), "must be integers"),
        (np.full((1, 4, 4), 7), "class 7 has no name: there are 2"),
        (np.full((1, 4, 4), -1), "class -1 has no name"),
    ],
)
def test_segmentation_refuses_what_does_not_fit(labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_segmentation(np.ones((1, 4, 4, 3)), {"x": labels}, ["a", "b"])


def test_segmentation_needs_a_labelling() -> None:
    with pytest.raises(ValueError, match="labellings is empty"):
        draw_segmentation(np.ones((1, 4, 4, 3)), {}, ["a"])
