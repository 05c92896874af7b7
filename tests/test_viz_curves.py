"""Curves and bars, judged by what their axes hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sketchfusion_plugins.viz import draw_branch_weights, draw_spectra, draw_training

pytest.importorskip("matplotlib")


def _extents(figure: Any) -> list[Any]:
    """Boxes of everything but the figures themselves, after drawing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [axes.get_tightbbox(canvas.get_renderer()) for axes in figure.axes]
    legends = [*figure.legends, *(legend for sub in figure.subfigs for legend in sub.legends)]
    return [*boxes, *(legend.get_window_extent() for legend in legends)]


def _nothing_is_cut(figure: Any) -> bool:
    width, height = figure.bbox.width, figure.bbox.height
    return all(
        box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        for box in _extents(figure)
    )


def test_bars_are_as_long_as_the_weights() -> None:
    logits = torch.nn.Parameter(torch.tensor([0.0, 1.0, -2.0]))
    weights = {"stride 8": logits.softmax(0), "stride 16": np.array([0.2, 0.3, 0.5])}
    figure = draw_branch_weights(weights, ["fine", "middle", "coarse"])
    for axes, (title, own) in zip(figure.axes, weights.items(), strict=True):
        assert axes.get_title() == title
        widths = [patch.get_width() for patch in axes.patches]
        np.testing.assert_allclose(widths, torch.as_tensor(own).detach(), atol=1e-6)
        assert axes.lines[0].get_xdata()[0] == pytest.approx(1 / 3)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["fine", "middle", "coarse"]
    # The first level is on top.
    assert figure.axes[0].yaxis_inverted()
    assert _nothing_is_cut(figure)


@pytest.mark.parametrize(
    ("weights", "levels"),
    [
        ({}, ["a"]),
        ({"x": np.ones(0)}, []),
        ({"x": np.array([0.5, 0.5])}, ["a"]),
        ({"x": np.array([0.5, 0.6])}, ["a", "b"]),
        ({"x": np.array([1.5, -0.5])}, ["a", "b"]),
        ({"x": np.array([np.nan, 1.0])}, ["a", "b"]),
    ],
)
def test_weights_are_checked(weights: Any, levels: list[str]) -> None:
    with pytest.raises(ValueError, match="weights"):
        draw_branch_weights(weights, levels)


def test_training_has_a_panel_per_measure_and_a_line_per_run() -> None:
    steps = np.arange(0, 100, 2)
    runs = {
        "first": {"loss": (steps, np.exp(-steps / 50)), "mIoU": ([100], [39.4])},
        "second": {"loss": (steps, np.exp(-steps / 20)), "lr": (steps, steps * 1e-5)},
    }
    figure = draw_training(runs)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "mIoU", "lr"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 1, 1]
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_ydata(), runs["second"]["loss"][1])
    styles = {(line.get_color(), str(line.get_linestyle())) for line in figure.axes[0].lines}
    assert len({color for color, _ in styles}) == len({style for _, style in styles}) == 2
    # One value is a point, which a line without markers would not show.
    assert figure.axes[1].lines[0].get_marker() == "o"
    assert figure.axes[2].lines[0].get_color() == figure.axes[0].lines[1].get_color()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["first", "second"]
    assert _nothing_is_cut(figure)


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_training_leaves_no_panel_empty(count: int) -> None:
    curves = {f"measure {number}": ([1, 2], [0.0, 1.0]) for number in range(count)}
    figure = draw_training({"run": curves})
    assert len(figure.axes) == count and all(axes.lines for axes in figure.axes)
    assert not figure.legends


@pytest.mark.parametrize(
    "runs", [{}, {"run": {}}, {"run": {"loss": ([1, 2], [1.0])}}, {"run": {"loss": ([], [])}}]
)
def test_training_refuses_no_curves(runs: Any) -> None:
    with pytest.raises(ValueError, match="curve"):
        draw_training(runs)


def _spectra(titles: list[str]) -> tuple[Any, Any]:
    radius = np.array([0.1, 0.5, 1.0])
    names = ("SD, stride 8", "SD, stride 16", "CLIP")
    panels = {
        title: {name: (radius, np.array([np.nan, -number, -2.0 * number])) for name in names}
        for number, title in enumerate(titles, 1)
    }
    shares = {title: dict.fromkeys(names[1:], (0.5, 0.4, 0.7)) for title in titles}
    return panels, shares


@pytest.mark.parametrize("titles", [["a"], ["a", "b"], ["a", "b", "a, control", "b, control"]])
def test_spectra_leave_out_what_is_not_defined(titles: list[str]) -> None:
    panels, shares = _spectra(titles)
    figure = draw_spectra(panels, shares, columns=min(2, len(titles)), white_noise={"CLIP": 0.06})
    *curves, dots = figure.axes
    assert [axes.get_title() for axes in curves] == titles
    for number, axes in enumerate(curves, 1):
        assert len(axes.lines) == 3
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), [0.5, 1.0])
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), [-number, -2 * number])
    # Levels of one part share a colour, and no two lines look the same.
    colours = [line.get_color() for line in curves[0].lines]
    assert colours[0] == colours[1] != colours[2]
    assert curves[0].lines[0].get_linestyle() != curves[0].lines[1].get_linestyle()
    # The curve without a share has no row of its own.
    names = [label.get_text() for label in dots.get_yticklabels()]
    assert names == ["SD, stride 16", "CLIP"]
    np.testing.assert_array_equal(dots.lines[0].get_xdata(), [np.nan, 0.06])
    assert len(dots.containers) == len(titles)
    for container in dots.containers:
        segments = container.lines[2][0].get_segments()
        np.testing.assert_allclose([s[:, 0] for s in segments], [[0.4, 0.7]] * 2)
    assert _nothing_is_cut(figure)


def test_spectra_refuse_what_does_not_fit() -> None:
    panels, shares = _spectra(["a", "b"])
    with pytest.raises(ValueError, match=r"got \['a'\] for \['a', 'b'\]"):
        draw_spectra(panels, {"a": shares["a"]})
    with pytest.raises(ValueError, match="at least one"):
        draw_spectra({}, {})
    panels["a"]["CLIP"] = (np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match=r"'CLIP' needs as many x as y"):
        draw_spectra(panels, shares)
