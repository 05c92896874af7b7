"""Rows that trained for other numbers of steps are not held against each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Load = Callable[[str], ModuleType]


def _about(work: Path, model: str, steps: int) -> None:
    folder = work / "fusion" / model
    folder.mkdir(parents=True)
    (folder / "about.json").write_text(json.dumps({"steps": steps}))


def _command(tmp_path: Path, *more: str) -> list[str]:
    names = ("work", "quickdraw", "spg", "out")
    return [*(part for name in names for part in (f"--{name}", str(tmp_path / name))), *more]


def test_rows_of_other_steps_are_refused_before_anything_is_measured(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = load("evaluate")
    measured: list[tuple[str, int]] = []
    monkeypatch.setattr(evaluate, "measure", lambda row, seed, *_: measured.append((row, seed)))
    _about(tmp_path / "work", "fused-0", 1500)
    _about(tmp_path / "work", "fused-1", 1500)
    _about(tmp_path / "work", "random-0", 300)
    said = (
        r"same number of steps, got fused, seed 0: 1500; fused, seed 1: 1500; "
        r"fused, random foundations, seed 0: 300\. Train the others again with fusion\.py --steps"
    )
    with pytest.raises(ValueError, match=said):
        evaluate.main(_command(tmp_path))
    assert not measured
    # The shipped weights are known to have trained longer.
    rows = ("fused", "fused, as shipped")
    evaluate.main(_command(tmp_path, "--rows", *rows, "--seeds", "0", "1"))
    assert measured == [("fused", 0), ("fused", 1), ("fused, as shipped", 0)]


def test_figures_keep_the_steps_of_weights_that_are_gone(
    tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = load("evaluate")
    data = load("judged_data").JudgedData(*(tmp_path / name for name in ("work", "q", "s", "p")))
    about = {**evaluate.judged_on(data), "weights": "gone"}
    record = {"row": "fused", "seed": 0, "about": about, "steps": 1500, "groups": {}}
    path = evaluate.record_path("fused", 0, tmp_path / "out")
    path.parent.mkdir()
    path.write_text(json.dumps(record))
    _about(tmp_path / "work", "sd-0", 300)
    asked = _command(tmp_path, "--seeds", "0", "--rows")
    with pytest.raises(ValueError, match=r"SD \+ adapters, seed 0: 300; fused, seed 0: 1500"):
        evaluate.main([*asked, "SD + adapters", "fused"])
    # Figures on other items are not in the table.
    path.write_text(json.dumps({**record, "about": {**about, "limit": 3}}))
    assert evaluate.steps_of(["fused"], [0], tmp_path / "out", data) == {}
    del record["steps"]
    path.write_text(json.dumps(record))
    evaluate.main([*asked, "fused"])
    assert "fused, seed 0: how many steps it trained is not known" in capsys.readouterr().out
