"""Curves and bars: branch weights, training, spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sketchfusion_plugins.viz.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    as_numpy,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sketchfusion_plugins.viz.figures import Array

    # x and y, of the same length; NaN in y leaves a point out.
    Curve: TypeAlias = tuple[Array, Array] | tuple[Sequence[float], Sequence[float]]

_PANEL_INCHES = (3.0, 2.3)
_PANELS_PER_ROW = 4
# The palette without yellow, which lines on white are too thin for.
_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PINK, SKY, "black")
_STYLES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.5, 1, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw_branch_weights(weights: Mapping[str, Array], levels: Sequence[str]) -> Figure:
    """Bars of the weights that adaptive aggregation learned for its levels.

    A dashed line marks equal weights.

    Args:
        weights: Title, such as "stride 8", to weights [L], 0..1, summing to one.
        levels: Names of the L levels.

    Returns:
        Figure on white, a panel per entry of ``weights``.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: Nothing to draw, or weights have another shape, range or sum.
    """
    if not weights or not levels:
        raise ValueError("expected weights of at least one aggregation and one level, got none")
    values = {title: as_numpy(own).astype(np.float64) for title, own in weights.items()}
    for title, own in values.items():
        if own.shape != (len(levels),) or not (own.min() >= 0 and abs(own.sum() - 1) < 1e-3):
            raise ValueError(
                f"{title!r} must hold {len(levels)} weights of 0..1 that sum to one, got "
                f"{own.tolist()}"
            )
    height = 0.7 + 0.35 * len(levels)
    figure = new_figure((3.2 * len(values), height), layout="constrained")
    panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    for axes, (title, own) in zip(panels, values.items(), strict=True):
        bars = axes.barh(list(levels), own, color=BLUE, height=0.7)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
        axes.axvline(1 / len(levels), color="0.4", linestyle="dashed", linewidth=1, zorder=0)
        # Room for the numbers beside the bars.
        axes.set_xlim(0, 1.2 * max(own.max(), 1 / len(levels)))
        axes.set_title(title, fontsize=10, parse_math=False)
        axes.tick_params(labelsize=9)
        _open_frame(axes)
    panels[0].invert_yaxis()
    return figure


def draw_training(runs: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """Small panels of everything that training runs have logged, one per measure.

    Args:
        runs: Name of a run to its curves; a curve's name, such as "loss", to steps and values, see
            `sketchfusion_plugins.evaluation.training_log.read_training_log`. Runs need not have
            logged the same.

    Returns:
        Figure on white; a legend where there are several runs.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: There is no curve, or one whose steps and values differ in number.
    """
    names = list(dict.fromkeys(name for curves in runs.values() for name in curves))
    if not names:
        raise ValueError("no run holds a curve; a run's log has lines once it has trained a while")
    columns = min(_PANELS_PER_ROW, len(names))
    rows = -(-len(names) // columns)
    width, height = _PANEL_INCHES
    legend = 0.35 if len(runs) > 1 else 0.0
    figure = new_figure((columns * width, rows * height + legend), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    lines: dict[str, Any] = {}
    for axes, name in zip(panels, names, strict=False):
        for number, (run, curves) in enumerate(runs.items()):
            if name in curves:
                steps, values = _checked_curve(name, curves[name])
                # A single judgement would be no line at all.
                marker = _MARKERS[number % len(_MARKERS)] if len(steps) < 20 else None
                (lines[run],) = axes.plot(
                    steps,
                    values,
                    color=_COLOURS[number % len(_COLOURS)],
                    linestyle=_STYLES[number % len(_STYLES)],
                    marker=marker,
                    markersize=4,
                )
        axes.set_title(name, fontsize=10, parse_math=False)
        axes.tick_params(labelsize=8)
        axes.grid(color="0.9")
        _open_frame(axes)
    for axes in panels[len(names) :]:
        axes.remove()
    figure.supxlabel("step", fontsize=9)
    if len(runs) > 1:
        figure.legend(
            lines.values(), lines.keys(), loc="outside upper center", ncols=4, frameon=False
        )
    return figure


def draw_spectra(
    panels: Mapping[str, Mapping[str, Curve]],
    shares: Mapping[str, Mapping[str, tuple[float, float, float]]],
    *,
    white_noise: Mapping[str, float] | None = None,
    columns: int | None = None,
) -> Figure:
    """Relative log amplitude against radial frequency, and shares of energy at low frequencies.

    Names that are alike up to the first comma, such as "SD, stride 8" and "SD, stride 16", are of
    one colour and differ in line style.

    Args:
        panels: Title to curves; a curve's name to radial frequencies (1 is Nyquist's) and log
            amplitudes. NaN leaves a point out.
        shares: Title, of the same keys, to a share with its lower and upper bound by curve's name,
            0..1; curves that have none are left out.
        white_noise: What the share of white noise is, by curve's name, as a mark to compare with.
        columns: Panels side by side; all of them by default. The shares follow on the right.

    Returns:
        Figure on white.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: There is no panel, a curve's two arrays differ in number, or the titles of
            ``panels`` and ``shares`` differ.
    """
    if not panels or list(panels) != list(shares):
        raise ValueError(
            f"expected shares for the same, at least one, panel, got {list(shares)} for "
            f"{list(panels)}"
        )
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    looks = _looks(names)
    columns = min(columns or len(panels), len(panels))
    rows = -(-len(panels) // columns)
    # Grids that are too small for low frequencies have no share; an empty panel says nothing.
    widths = [3.0 * columns, 4.2] if any(shares.values()) else [3.0 * columns]
    figure = new_figure((sum(widths), max(3.2, 2.4 * rows) + 0.9), layout="constrained")
    left, *right = figure.subfigures(1, len(widths), squeeze=False, width_ratios=widths)[0]
    first: Axes | None = None
    lines: dict[str, Any] = {}
    for number, (title, curves) in enumerate(panels.items()):
        axes = left.add_subplot(rows, columns, number + 1, sharex=first, sharey=first)
        first = first or axes
        for name, curve in curves.items():
            radius, values = _checked_curve(name, curve)
            there = np.isfinite(values)
            (lines[name],) = axes.plot(
                radius[there], values[there], marker="o", markersize=3, **looks[name]
            )
        axes.set_title(title, fontsize=10, parse_math=False)
        axes.set_xlabel("radial frequency / Nyquist", fontsize=9)
        if number % columns == 0:
            axes.set_ylabel("relative log amplitude", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(color="0.9")
        _open_frame(axes)
    below: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
    left.legend(lines.values(), lines.keys(), ncols=min(len(lines), 2 * columns), **below)
    for side in right:
        axes = side.add_subplot()
        _draw_shares(axes, shares, white_noise or {}, columns)
        side.legend(*axes.get_legend_handles_labels(), ncols=2, **below)
    return figure


def _draw_shares(
    axes: Axes,
    shares: Mapping[str, Mapping[str, tuple[float, float, float]]],
    white_noise: Mapping[str, float],
    columns: int,
) -> None:
    """Dots with their intervals, a line per curve.

    A column of panels has one colour and marker, filled in the first row.
    """
    names = list(dict.fromkeys(name for own in shares.values() for name in own))
    ticks = np.arange(len(names), dtype=np.float64)
    reference = [white_noise.get(name, np.nan) for name in names]
    axes.plot(reference, ticks, "|", color="0.5", markersize=12, label="white noise")
    for number, (title, own) in enumerate(shares.items()):
        found = np.array([own.get(name, (np.nan,) * 3) for name in names]).reshape(-1, 3)
        column = number % columns
        # Side by side, lest equal shares hide each other.
        offset = (number - (len(shares) - 1) / 2) * 0.7 / len(shares)
        axes.errorbar(
            found[:, 0],
            ticks + offset,
            xerr=np.stack([found[:, 0] - found[:, 1], found[:, 2] - found[:, 0]]),
            linestyle="none",
            marker=_MARKERS[column % len(_MARKERS)],
            color=_COLOURS[column % len(_COLOURS)],
            markerfacecolor=None if number < columns else "white",
            markersize=5,
            label=title,
        )
    axes.set_yticks(ticks, names, fontsize=8)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5))
    axes.set_title("energy below a quarter of Nyquist", fontsize=10)
    axes.set_xlabel("share", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.9")
    _open_frame(axes)


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour by the text before the first comma, line style by the order within a colour."""
    families: dict[str, int] = {}
    looks: dict[str, dict[str, Any]] = {}
    for name in names:
        family = name.partition(",")[0]
        member = [other.partition(",")[0] for other in looks].count(family)
        colour = families.setdefault(family, len(families))
        looks[name] = {
            "color": _COLOURS[colour % len(_COLOURS)],
            "linestyle": _STYLES[member % len(_STYLES)],
        }
    return looks


def _checked_curve(name: str, curve: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = (
        np.asarray(part if isinstance(part, list | tuple) else as_numpy(part), dtype=np.float64)
        for part in curve
    )
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(
            f"the curve {name!r} needs as many x as y, at least one, got {list(x.shape)} and "
            f"{list(y.shape)}"
        )
    return x, y


def _open_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
