"""The split that a task was trained on stays with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sketchfusion_plugins import CheckpointError
from sketchfusion_plugins.adapter_file import WEIGHTS_FILE, Split, read_split
from sketchfusion_plugins.tasks.load import build_task, load_task


@pytest.fixture
def saved(build: Any, tmp_path: Path) -> Path:
    """A task that was trained on a split."""
    task = build_task("retrieval", build())
    task.split = Split("paired", 3)
    task.save_pretrained(tmp_path)
    return tmp_path


def test_a_split_is_saved_and_read(saved: Path, tmp_path: Path) -> None:
    assert read_split(saved) == Split("paired", 3)
    described = json.loads((saved / "config.json").read_text())["task"]
    assert described["split"] == {"source": "paired", "seed": 3}
    loaded = load_task(saved)
    loaded.save_pretrained(tmp_path / "again")
    assert loaded.split == read_split(tmp_path / "again") == Split("paired", 3)


def test_what_came_before_is_saved_too(build: Any, tmp_path: Path) -> None:
    task = build_task("retrieval", build())
    task.split = Split("paired", 3, (("recognition", "tuberlin@mine", 0),))
    task.save_pretrained(tmp_path)
    assert read_split(tmp_path) == load_task(tmp_path).split == task.split


def test_an_encoder_has_none(build: Any, tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    assert read_split(tmp_path) is None


@pytest.mark.parametrize(
    "split",
    [
        {"source": "paired"},
        {"source": "paired", "seed": "1"},
        {"source": "paired", "seed": True},
        {"source": "paired", "seed": -1},
        {"source": 3, "seed": 1},
        {"source": "paired", "seed": 1, "folder": "mine"},
        {"source": "paired", "seed": 1, "before": 3},
        {"source": "paired", "seed": 1, "before": [["retrieval", "paired"]]},
        {"source": "paired", "seed": 1, "before": [["retrieval", "paired", -1]]},
    ],
)
def test_damaged_splits_are_refused(saved: Path, split: dict[str, Any]) -> None:
    path = saved / WEIGHTS_FILE
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["sketchfusion"])
    description["task"]["split"] = split
    save_file(load_file(path), path, {"sketchfusion": json.dumps(description)})
    for read in (read_split, load_task):
        with pytest.raises(CheckpointError, match="unreadable split") as caught:
            read(saved)
        assert str(saved) in str(caught.value) and repr(split) in str(caught.value)
