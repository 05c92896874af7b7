"""Means with intervals, tables, and reports that are read again."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sketchfusion_plugins.evaluation.report import Measured, Report, read_report
from sketchfusion_plugins.metrics.intervals import bootstrap_mean, wilson

HALF = Measured(0.5, 0.25, 0.75, 8)


def report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "task": "retrieval",
        "source": "openmoji",
        "about": {"n": 8, "gallery": 9, "size": 64},
        "rows": {"HOG": {"Acc@1": HALF, "Acc@5": Measured(1.0, 0.7, 1.0, 8)}},
        "identities": {"HOG": {"dtype": "float32", "seed": 0}},
    }
    return Report(**{**values, **changes})


@pytest.mark.parametrize("items", [[1, 0, 0, 1, 1], [True, False], [0.0] * 80, [1.0] * 7])
def test_right_or_wrong_has_wilsons_interval(items: list[Any]) -> None:
    measured = Measured.of(items)
    share, count = sum(items) / len(items), len(items)
    low, high = wilson(share, count)
    assert (measured.value, measured.count) == (share, count)
    assert (measured.low, measured.high) == pytest.approx((low, high), abs=1e-12)
    assert measured.low <= measured.value <= measured.high


def test_shares_have_a_bootstrap_interval() -> None:
    items = np.random.default_rng(0).random(40)
    measured = Measured.of(items)
    assert measured.value == pytest.approx(items.mean())
    assert (measured.low, measured.high) == tuple(bootstrap_mean(items))
    assert measured.low < measured.value < measured.high
    assert Measured.of(items) == measured
    equal = Measured.of([0.3] * 5)
    assert equal.low <= equal.value <= equal.high


def test_weights_are_no_spread() -> None:
    """Ten perfect rankings of classes of 1 and 9."""
    weights = [1.0] + [1 / 9] * 9
    # As unweighted: that all are right leaves room for others.
    assert Measured.of([1.0] * 10, weights) == Measured.of([1.0] * 10)
    assert Measured.of([0.3] * 10, weights) == Measured(*[pytest.approx(0.3)] * 3, 10)
    items = np.random.default_rng(0).random(10)
    measured = Measured.of(items, weights)
    assert measured.value == pytest.approx((items[0] + items[1:].mean()) / 2)
    assert (measured.low, measured.high) == tuple(bootstrap_mean(items, weights=weights))
    assert items.min() <= measured.low < measured.value < measured.high <= items.max()


@pytest.mark.parametrize("items", [[1, 0, 0, 1, 1], [0.2, 0.7, 0.4], [0.4]])
def test_equal_weights_change_nothing(items: list[float]) -> None:
    assert Measured.of(items, [1 / 3] * len(items)) == Measured.of(items)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 1.0], r"weights above 0 \[3\], got the shape \[2\]"),
        ([1.0, 1.0, -1.0], r"weights above 0 \[3\], got -1\.0"),
        ([float("nan")] * 3, r"weights above 0 \[3\], got nan"),
    ],
)
def test_bad_weights(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Measured.of([0, 1, 1], weights)


@pytest.mark.parametrize(
    ("item", "low", "high"), [(0.4, 0, 1), (1.0, wilson(1, 1)[0], 1), (0.0, 0, wilson(0, 1)[1])]
)
def test_one_item_alone_tells_little(item: float, low: float, high: float) -> None:
    assert Measured.of([item]) == Measured(item, pytest.approx(low), pytest.approx(high), 1)


def test_no_item_has_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one judged item, got none"):
        Measured.of([])


def test_measures_read_as_value_and_interval() -> None:
    assert str(HALF) == "0.500 (0.250 to 0.750)"


def test_markdown() -> None:
    rows = {
        "HOG": {"Acc@1": HALF},
        "fused": {"Acc@1": Measured(1.0, 0.7, 1.0, 8), "Acc@5": HALF},
    }
    assert report(rows=rows).markdown() == (
        "| retrieval, openmoji | Acc@1 | Acc@5 |\n"
        "|---|---|---|\n"
        "| HOG | 0.500 (0.250 to 0.750) |  |\n"
        "| fused | 1.000 (0.700 to 1.000) | 0.500 (0.250 to 0.750) |\n"
        "\n"
        "95 % intervals in brackets; n 8, gallery 9, size 64.\n"
        "\n"
        "HOG: dtype float32, seed 0.\n"
    )


def test_a_bar_in_a_name_ends_no_cell() -> None:
    assert "| a\\|b | 0.500 (0.250 to 0.750) |" in report(rows={"a|b": {"Acc@1": HALF}}).markdown()


def test_models_measured_alike_are_named_together() -> None:
    row = {"Acc@1": HALF}
    alike, other = {"dtype": "float32"}, {"dtype": "bfloat16"}
    text = report(
        rows={"CLIP": row, "fused": row, "SD": row, "chance": row},
        identities={"CLIP": alike, "fused": other, "SD": dict(alike)},
    ).markdown()
    assert text.endswith("\n\nCLIP, SD: dtype float32.\n\nfused: dtype bfloat16.\n")


def test_table_holds_every_figure() -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(report().table())
    text = captured.get()
    for part in (
        "retrieval, openmoji",
        "HOG",
        "Acc@1",
        "0.500 (0.250 to 0.750)",
        "gallery 9",
        "seed 0",
    ):
        assert part in text


def test_folders_with_markup_are_printed_as_they_are() -> None:
    row = {"Acc@1": Measured(0.5, 0.25, 0.75, 9)}
    names = ["runs/[lr=1]/adapters", "runs/[red]/adapters"]
    made = Report("retrieval", "paired:[a]", {"seed": 0}, dict.fromkeys(names, row))
    console = Console(width=120)
    with console.capture() as captured:
        console.print(made.table())
    assert all(name in captured.get() for name in (*names, "paired:[a]"))


def test_models_with_long_names_are_told_apart() -> None:
    row = {"Acc@1": Measured(0.5, 0.25, 0.75, 9), "Acc@5": Measured(0.5, 0.25, 0.75, 9)}
    names = [f"/data/runs/experiment_2026_{letter}/retrieval/adapters" for letter in "ab"]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(Report("retrieval", "openmoji", {}, dict.fromkeys(names, row)).table())
    lines = [line.strip("\u2502 ") for line in captured.get().splitlines()]
    shown = "".join(re.split(r"\s*\u2502", line)[0] for line in lines)
    assert all(name in shown for name in names)


def test_written_rows_are_read_again(tmp_path: Path) -> None:
    written = report()
    written.write(tmp_path / "new")
    assert (tmp_path / "new" / "retrieval.md").read_text() == written.markdown()
    assert json.loads((tmp_path / "new" / "retrieval.json").read_text()) == written.as_json()
    read = read_report(tmp_path / "new" / "retrieval.json", report(rows={}, identities={}))
    assert read == written
    assert isinstance(read.rows["HOG"]["Acc@1"], Measured)


@pytest.mark.parametrize(
    "changes",
    [{"task": "recognition"}, {"source": "sketchy:/data"}, {"about": {"n": 9, "size": 64}}],
)
def test_reports_on_other_data_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    report().write(tmp_path)
    with pytest.raises(ValueError, match=r"reports on .* expected .* Choose another folder"):
        read_report(tmp_path / "retrieval.json", report(**changes))


def test_only_what_differs_is_named(tmp_path: Path) -> None:
    report().write(tmp_path)
    asked = report(about={"n": 8, "gallery": 9, "size": 32, "limit": 5})
    message = r"json reports on size 64, limit None, expected size 32, limit 5\. Choose"
    with pytest.raises(ValueError, match=message):
        read_report(tmp_path / "retrieval.json", asked)


def test_reports_of_the_earlier_form_are_refused(tmp_path: Path) -> None:
    """What one version wrote that kept all models' identities in one place."""
    values = report().as_json()
    del values["identities"]
    values["about"]["models"] = "tiny (random foundations); hog"
    path = tmp_path / "retrieval.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"is of an earlier version .* Choose another folder"):
        read_report(path, report())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"rows": []}',
        '{"rows": {"HOG": 3}}',
        '{"rows": {"HOG": {"Acc@1": {"value": 1}}}}',
        '{"task": "retrieval", "source": "here", "about": "n", "rows": {}}',
        '{"task": "retrieval", "source": "here", "about": {}, "rows": {"a": {}}, "identities": {}}',
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "retrieval.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"retrieval\.json is no report of ours"):
        read_report(path, report())


def test_missing_files_are_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_report(tmp_path / "retrieval.json", report())


def test_items_of_a_group_count_as_one() -> None:
    """As drawn by hand: two answers to the same question are no more than one."""
    once = [0.25, 1.0, 0.5, 0.75, 0.25]
    expected = Measured.of(once)
    twice = Measured.of(np.repeat(once, 2), groups=np.repeat(np.arange(5), 2))
    assert twice == replace(expected, count=10)
    alone = Measured.of(np.repeat(once, 2))
    assert alone.high - alone.low < twice.high - twice.low
    # Weights belong to items, of which a group is the sum.
    weighed = Measured.of(np.repeat(once, 2), [1, 3] * 5, np.repeat(np.arange(5), 2))
    assert weighed == replace(expected, count=10)
    assert Measured.of(once, groups=[7, 3, 5, 1, 2]) == expected


def test_items_that_are_all_right_have_an_interval_by_weights_too() -> None:
    weights, pairs = [1, 1, 1, 0.5], [0, 0, 1, 1]
    for value in (0.0, 1.0):
        got = Measured.of([value] * 4, weights)
        assert got == Measured(value, *wilson(value, 4), 4)
        got = Measured.of([value] * 4, weights, pairs)
        assert got == Measured(value, *wilson(value, 2), 4)
    # Two groups of the mean 1/3, but for the rounding of their sums.
    got = Measured.of([1, 0, 0, 1, 0, 0], [1, 1, 1, *[1 / 6] * 3], [0, 0, 0, 1, 1, 1])
    assert (got.low, got.high) == tuple(wilson(got.value, 2))


def test_right_and_wrong_in_groups() -> None:
    items = [1, 1, 0, 0, 1, 1, 1, 1]
    pairs = [0, 0, 1, 1, 2, 2, 3, 3]
    assert Measured.of(items, groups=range(8)) == Measured.of(items)
    interval = bootstrap_mean([1.0, 0.0, 1.0, 1.0])
    assert Measured.of(items, groups=pairs) == Measured(0.75, *interval, 8)
    # Of four groups, not of eight items: resamples of groups that are alike leave no interval.
    for value in (0, 1):
        assert Measured.of([value] * 8, groups=pairs) == Measured(value, *wilson(value, 4), 8)
    assert Measured.of([1, 0] * 4, groups=pairs) == Measured(0.5, *wilson(0.5, 4), 8)
    assert Measured.of([1, 1], groups=[3, 3]) == Measured(1.0, 0.0, 1.0, 2)
    assert Measured.of([0.5, 0.25], groups=[1, 1]) == Measured(0.375, 0.0, 1.0, 2)
