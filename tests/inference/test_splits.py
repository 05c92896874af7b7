"""The seed of a split that holds out nothing that models were trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sketchfusion_plugins.adapter_file import Split
from sketchfusion_plugins.inference.splits import split_seed, trained_on
from sketchfusion_plugins.tasks.load import build_task


@pytest.fixture
def trained(build: Any, tmp_path: Path) -> Callable[..., str]:
    """Folder of a task that was trained on a split."""

    def save(source: str, seed: int, name: str = "retrieval") -> str:
        settings = {"classes": ("cat", "dog")} if name == "recognition" else {}
        task = build_task(name, build(), **settings)
        task.split = Split(source, seed)
        task.save_pretrained(tmp_path / f"{name}-{source}-{seed}")
        return str(tmp_path / f"{name}-{source}-{seed}")

    return save


def test_what_was_trained_on_is_the_default(trained: Callable[..., str]) -> None:
    model = trained("paired", 4)
    for source in ("paired:mine", "paired:/elsewhere/mine", "paired-fine:mine"):
        for models in ([model], ["hog", model, "tiny"]):
            assert split_seed(models, "retrieval", source) == 4
        assert split_seed([model], "retrieval", source, 4) == 4
    assert split_seed([model], "retrieval", "sketchy:mine") == 0
    assert split_seed([model], "retrieval", "sketchy:mine", 7) == 7
    assert split_seed(["hog", "tiny", "timm:resnet18"], "retrieval", "paired:mine") == 0


@pytest.mark.parametrize(
    ("trained_on", "judged_on"),
    [
        ("retrieval sketchy", "retrieval sketchy-fine"),
        ("retrieval sketchy-fine-category", "retrieval sketchy"),
        ("retrieval sketchy-25", "retrieval sketchy-25"),
        ("correspondence psc6k", "correspondence psc6k"),
        ("recognition tuberlin", "recognition tuberlin"),
        ("recognition openmoji", "retrieval openmoji"),
        ("retrieval openmoji", "query_segmentation openmoji"),
        # Other data are not held against it.
        ("recognition tuberlin", "retrieval sketchy"),
        ("recognition tuberlin@mine", "recognition tuberlin@mine"),
        ("recognition tuberlin@mine", "retrieval tuberlin"),
        ("recognition tuberlin", "retrieval tuberlin@mine"),
        ("retrieval paired@mine", "retrieval paired-fine@mine"),
    ],
)
def test_sources_that_hold_out_alike_follow_one_another(
    trained: Callable[..., str], trained_on: str, judged_on: str
) -> None:
    (name, source), (task, asked) = trained_on.split(), judged_on.split()
    model = trained(source, 0, name)
    assert split_seed([model], task, asked if asked == "openmoji" else f"{asked}:mine") == 0


@pytest.mark.parametrize(
    ("trained_on", "judged_on"),
    [
        ("retrieval sketchy-25", "retrieval sketchy"),
        ("retrieval sketchy", "retrieval sketchy-25"),
        ("retrieval sketchy-25", "retrieval sketchy-fine"),
        ("recognition sketchy", "retrieval sketchy"),
        ("recognition tuberlin", "retrieval tuberlin"),
        ("retrieval tuberlin", "recognition tuberlin"),
        ("recognition quickdraw", "retrieval quickdraw-extended"),
        ("correspondence psc6k", "correspondence psc6k-pscnet"),
        # PSC6K's pictures are Sketchy's.
        ("correspondence psc6k", "retrieval sketchy"),
        ("recognition sketchy", "correspondence psc6k"),
        ("recognition tuberlin@mine", "retrieval tuberlin@mine"),
    ],
)
def test_what_was_trained_on_is_not_judged(
    trained: Callable[..., str], trained_on: str, judged_on: str
) -> None:
    (name, source), (task, asked) = trained_on.split(), judged_on.split()
    model = trained(source, 0, name)
    kind = asked.partition("@")[0]
    message = (
        f"on data that {task} of {asked} keeps to judge on: {model} on {name} of {source}. "
        f"Expected models of .*{task} of {kind}.*, or of other data. Name such models, or train "
        f"one anew. "
        f"Other data in the layout of {kind} take a label: {kind}@LABEL:FOLDER"
    )
    for seed in (None, 0):
        with pytest.raises(ValueError, match=message):
            split_seed(["hog", model], task, f"{asked}:mine", seed)


def test_what_was_trained_on_before_counts_too(build: Any, tmp_path: Path) -> None:
    task = build_task("retrieval", build())
    task.split = Split("paired", 2, (("recognition", "tuberlin", 0), ("retrieval", "paired", 2)))
    task.save_pretrained(tmp_path)
    model = str(tmp_path)
    known = (("recognition", "tuberlin", 0), ("retrieval", "paired", 2))
    assert trained_on(model) == known
    assert trained_on("sketchfusion/tiny") == trained_on("hog") == ()
    assert split_seed([model], "retrieval", "paired:mine") == 2
    assert split_seed([model], "recognition", "tuberlin:mine") == 0
    with pytest.raises(ValueError, match=f"{model} on recognition of tuberlin"):
        split_seed([model], "retrieval", "tuberlin:mine")


def test_sources_without_data_for_the_task_are_told_as_such(trained: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match="recognition has no data source 'paired'"):
        split_seed([trained("paired", 4)], "recognition", "paired:mine")


@pytest.mark.parametrize("source", ["paired:mine", "paired-fine:mine"])
def test_another_split_of_the_same_data_is_refused(
    trained: Callable[..., str], source: str
) -> None:
    model = trained("paired", 4)
    expected = f"{model} on that of seed 4.*Leave --split-seed out"
    with pytest.raises(ValueError, match=f"another split than that of seed 0 .*{expected}"):
        split_seed([model], "retrieval", source, 0)
    with pytest.raises(ValueError, match="trained on different splits of paired"):
        split_seed([model, trained("paired", 5)], "retrieval", "paired:mine")


def test_checkpoints_without_a_split_take_any(build: Any, tmp_path: Path) -> None:
    build().save_pretrained(tmp_path / "encoder")
    build_task("retrieval", build()).save_pretrained(tmp_path / "task")
    models = [str(tmp_path / "encoder"), str(tmp_path / "task"), "sketchfusion/tiny"]
    assert split_seed(models, "retrieval", "paired:mine") == 0
    assert split_seed(models, "retrieval", "paired:mine", 2) == 2
