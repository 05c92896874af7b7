"""Markdown and a plot of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timing import Measured, peaks

Results = Mapping[str, Measured]
MIB = 2**20
SHOWN_IN_PLOT = ("b", "c", "d", "d2", "f", "f2", "g", "k", "l")


def to_dict(results: Results, batch: int, clock: str = "wall") -> list[dict[str, Any]]:
    """Rows as JSON values; ratios are of medians of runs that took turns.

    Args:
        results: What was measured.
        batch: Images per run.
        clock: What ratios and shares are taken of, ``"wall"`` or ``"cpu"`` time.
    """
    best = peaks(results, clock)
    rows = []
    for key, result in results.items():
        row = result.row
        floor = results.get("f" if row.precision == "float32" else "f2")
        plain = results.get("b")
        time = result.time(clock)
        rate = result.flops / time
        rows.append(
            {
                "row": key,
                "title": row.title,
                "precision": row.precision,
                "seconds": result.seconds,
                "cpu_seconds": result.cpu_seconds,
                "median_s": result.median,
                "cpu_median_s": result.cpu_median,
                "images_per_s": None if key[0] == "h" else batch / result.median,
                "times_faster_than_b": plain and plain.time(clock) / time,
                "over_floor": floor and time / floor.time(clock) - 1.0,
                "gflop": result.flops / 1e9,
                "gflop_per_s": rate / 1e9,
                "share_of_peak": rate / best[row.precision] if row.precision in best else None,
                "weights_mib": result.held / MIB,
                "peak_mib": None if result.added is None else (result.held + result.added) / MIB,
            }
        )
    return rows


def to_markdown(report: Mapping[str, Any]) -> str:
    """Tables of a report."""
    lines = [
        f"`{report['command']}`",
        "",
        f"{report['machine']}, {report['device']}, {report['threads']} threads, "
        f"torch {report['torch']}, {report['date']}.",
    ]
    for case in report["cases"]:
        lines += ["", f"### {report['model']}, {case['size']} px, batch {case['batch']}", ""]
        lines += _table(case["rows"], case["batch"])
        for check in case["checks"]:
            lines += ["", check]
        if case["operators"]:
            lines += ["", *_operators(case["operators"])]
    return "\n".join(lines) + "\n"


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Bars of the time per image, one panel per size and batch; PNG or SVG by the name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = report["cases"]
    figure, axes = plt.subplots(
        1, len(cases), figsize=(1.5 + 5 * len(cases), 4.5), squeeze=False, layout="constrained"
    )
    for axis, case in zip(axes[0], cases, strict=True):
        rows = [
            row
            for row in case["rows"]
            if row["row"].rstrip("0123456789") in SHOWN_IN_PLOT or row["row"] in SHOWN_IN_PLOT
        ][::-1]
        times = [row["median_s"] / case["batch"] for row in rows]
        colours = ["tab:orange" if row["row"][0] in "cdk" else "tab:gray" for row in rows]
        bars = axis.barh([row["title"] for row in rows], times, color=colours)
        axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=7)
        axis.tick_params(labelsize=7)
        axis.set_title(f"{report['model']}, {case['size']} px, batch {case['batch']}", fontsize=9)
        axis.set_xlabel("seconds per image", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.15)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _table(rows: Sequence[Mapping[str, Any]], batch: int) -> list[str]:
    lines = [
        "| | row | s / image | CPU s / image | images / s | faster than (b) | over the floor "
        "| GFLOP / image | share of peak | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        machine = row["row"][0] == "h"
        inference = row["row"][0] in "abcdek"
        cells = [
            row["row"],
            row["title"],
            "" if machine else f"{row['median_s'] / batch:.4g}",
            "" if machine else f"{row['cpu_median_s'] / batch:.4g}",
            _shown(row["images_per_s"], "{:.3g}"),
            _shown(row["times_faster_than_b"] if inference else None, "{:.2f}x"),
            _shown(row["over_floor"] if row["row"][0] in "cdk" else None, "{:+.1%}"),
            f"{row['gflop_per_s']:.0f} / s" if machine else f"{row['gflop'] / batch:.4g}",
            _shown(row["share_of_peak"], "{:.0%}"),
            "" if machine else _shown(row["peak_mib"], "{:,.0f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _operators(operators: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Where the time of ({operators['row']}) goes; outside of operators, in Python: "
        f"{operators['outside']:.1%}.",
        "",
        "| operator | share | calls |",
        "|---|---|---|",
    ]
    return lines + [
        f"| {name} | {share:.1%} | {calls} |" for name, share, calls in operators["top"]
    ]


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
