"""Matched points of two pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sketchfusion_plugins.viz.figures import (
    GREEN,
    LEGEND_INCHES,
    RIGHT,
    WRONG,
    add_legend,
    as_numpy,
    checked_picture,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from sketchfusion_plugins.viz.figures import Array

_INCHES = 4.0


def draw_matches(
    source: Array,
    target: Array,
    source_points: Array,
    target_points: Array,
    true_points: Array | None = None,
    threshold: float | None = None,
) -> Figure:
    """Two pictures side by side, with lines between matched points.

    Where the truth is known, lines are blue and solid for points within ``threshold`` of it,
    vermilion and dashed for others, which a dotted line joins to their true place, a ring.

    Args:
        source: Picture [h, w, 3], uint8 or float in 0..1, array or tensor.
        target: The same, of any size.
        source_points: [N, 2] as (x, y) in pixels of ``source``; the first pixel's centre is
            (0.5, 0.5).
        target_points: [N, 2] in pixels of ``target``.
        true_points: [N, 2] in pixels of ``target``.
        threshold: Distance in pixels of ``target`` up to which a point is right, 0 or more; PCK's
            is a share of the target's longer side.

    Returns:
        Figure on white, 4 inches high, and a legend below where the truth is known.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: Pictures or points have the wrong shape, type or range, or one of
            ``true_points`` and ``threshold`` is missing.
    """
    pictures = [checked_picture("source", source), checked_picture("target", target)]
    starts, ends = (as_numpy(found).astype(np.float64) for found in (source_points, target_points))
    if starts.shape != ends.shape or starts.ndim != 2 or starts.shape[1] != 2:
        shapes = " and ".join(str(list(found.shape)) for found in (starts, ends))
        raise ValueError(f"points must be [N, 2] in both pictures, not {shapes}")
    truth = _checked_truth(ends, true_points, threshold)
    ratios = [picture.shape[1] / picture.shape[0] for picture in pictures]
    foot = 0.0 if truth is None else LEGEND_INCHES
    figure = new_figure((_INCHES * sum(ratios), _INCHES + foot))
    left, right = figure.subplots(1, 2, width_ratios=ratios)
    figure.subplots_adjust(0, foot / (_INCHES + foot), 1, 1, wspace=0)
    for axes, picture in zip((left, right), pictures, strict=True):
        height, width = picture.shape[:2]
        # matplotlib would put the first pixel's centre at (0, 0).
        axes.imshow(picture, extent=(0, width, height, 0), vmin=0, vmax=1)
        axes.set_axis_off()
    if truth is None or threshold is None:
        _draw_plain((left, right), starts, ends)
    else:
        near = np.linalg.norm(ends - truth, axis=1) <= threshold
        add_legend(figure, _draw_judged((left, right), (starts, ends, truth), near, threshold))
    return figure


def _draw_plain(
    axes: tuple[Axes, Axes], starts: NDArray[np.float64], ends: NDArray[np.float64]
) -> None:
    from matplotlib import colormaps

    colours = colormaps["turbo"](np.linspace(0.1, 0.9, len(starts)))
    for side, points in zip(axes, (starts, ends), strict=True):
        side.scatter(points[:, 0], points[:, 1], c=colours, s=18, zorder=3)
    for start, end, colour in zip(starts, ends, colours, strict=True):
        _join(axes, start, end, color=colour, linewidth=1)


def _draw_judged(
    axes: tuple[Axes, Axes],
    points: tuple[NDArray[np.float64], ...],
    near: NDArray[np.bool_],
    threshold: float,
) -> list[Line2D]:
    """Draws lines and dots; returns what the legend explains."""
    from matplotlib.lines import Line2D

    starts, ends, truth = points
    dots: dict[str, Any] = {"s": 36, "zorder": 3, "edgecolors": "white", "linewidths": 0.5}
    handles = []
    for style, marker, chosen, what in (
        (RIGHT, "o", near, "right, within"),
        (WRONG, "X", ~near, "wrong, beyond"),
    ):
        for side, own in zip(axes, (starts[chosen], ends[chosen]), strict=True):
            side.scatter(own[:, 0], own[:, 1], marker=marker, color=style["color"], **dots)
        for start, end in zip(starts[chosen], ends[chosen], strict=True):
            _join(axes, start, end, linewidth=1.2, **style)
        label = f"{what} {threshold:.3g} px: {int(chosen.sum())}"
        handles.append(Line2D([], [], marker=marker, label=label, **style))
    ring: dict[str, Any] = {"marker": "o", "color": GREEN, "markerfacecolor": "none"}
    for end, place in zip(ends[~near], truth[~near], strict=True):
        both = np.stack([end, place])
        axes[1].plot(both[:, 0], both[:, 1], color=GREEN, linestyle="dotted", linewidth=1.2)
        axes[1].plot(*place, markersize=9, markeredgewidth=1.5, zorder=4, **ring)
    if not near.all():
        handles.append(Line2D([], [], label="true place", linestyle="dotted", **ring))
    return handles


def _join(
    axes: tuple[Axes, Axes],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    **style: Any,
) -> None:
    from matplotlib.patches import ConnectionPatch

    places = (tuple(end), tuple(start))
    line = ConnectionPatch(*places, "data", "data", axesA=axes[1], axesB=axes[0], **style)
    figure = axes[0].get_figure()
    assert figure is not None
    figure.add_artist(line)


def _checked_truth(
    ends: NDArray[np.float64], true_points: Array | None, threshold: float | None
) -> NDArray[np.float64] | None:
    if true_points is None and threshold is None:
        return None
    if true_points is None or threshold is None:
        raise ValueError("give true_points and threshold together, or neither")
    truth = as_numpy(true_points).astype(np.float64)
    if truth.shape != ends.shape or not np.isfinite(truth).all():
        raise ValueError(
            f"true_points must be finite {list(ends.shape)}, not {list(truth.shape)}; leave out "
            "points whose true place is not known"
        )
    if not threshold >= 0:
        raise ValueError(f"threshold must be a distance in pixels, 0 or more, not {threshold}")
    return truth
