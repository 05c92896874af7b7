"""The seed of a split that holds out nothing that models were trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sketchfusion_plugins.adapter_file import Split
from sketchfusion_plugins.inference.splits import split_seed
from sketchfusion_plugins.tasks.load import build_task


@pytest.fixture
def trained(build: Any, tmp_path: Path) -> Callable[[str, int], str]:
    """Folder of a task that was trained on a split."""

    def save(source: str, seed: int) -> str:
        task = build_task("retrieval", build())
        task.split = Split(source, seed)
        task.save_pretrained(tmp_path / f"{source}-{seed}")
        return str(tmp_path / f"{source}-{seed}")

    return save


def test_what_was_trained_on_is_the_default(trained: Callable[[str, int], str]) -> None:
    model = trained("paired", 4)
    for source in ("paired:mine", "paired:/elsewhere/mine", "paired-fine:mine"):
        assert split_seed([model], source) == split_seed(["hog", model, "tiny"], source) == 4
        assert split_seed([model], source, 4) == 4
    assert split_seed([model], "sketchy:mine") == 0
    assert split_seed([model], "sketchy:mine", 7) == 7
    assert split_seed(["hog", "tiny", "timm:resnet18"], "paired:mine") == 0


@pytest.mark.parametrize("source", ["paired:mine", "paired-fine:mine"])
def test_another_split_of_the_same_data_is_refused(
    trained: Callable[[str, int], str], source: str
) -> None:
    model = trained("paired", 4)
    expected = f"{model} on that of seed 4.*Leave --split-seed out"
    with pytest.raises(ValueError, match=f"another split than that of seed 0 .*{expected}"):
        split_seed([model], source, 0)
    with pytest.raises(ValueError, match="trained on different splits of paired"):
        split_seed([model, trained("paired", 5)], "paired:mine")


def test_checkpoints_without_a_split_take_any(build: Any, tmp_path: Path) -> None:
    build().save_pretrained(tmp_path / "encoder")
    build_task("retrieval", build()).save_pretrained(tmp_path / "task")
    models = [str(tmp_path / "encoder"), str(tmp_path / "task"), "sketchfusion/tiny"]
    assert split_seed(models, "paired:mine") == 0
    assert split_seed(models, "paired:mine", 2) == 2
