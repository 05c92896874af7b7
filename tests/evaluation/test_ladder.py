"""The ladder: its rungs, one report after every model, and going on where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sketchfusion_plugins.config import EncoderConfig
from sketchfusion_plugins.data.pictures import Picture, PictureDataset
from sketchfusion_plugins.data.task_data import TaskData
from sketchfusion_plugins.evaluation.judge import SamePlace
from sketchfusion_plugins.evaluation.ladder import baseline_identities, baselines, evaluate
from sketchfusion_plugins.evaluation.report import Row
from sketchfusion_plugins.features import (
    ClipFeatures,
    ConcatenatedFeatures,
    DiffusionFeatures,
    Features,
    FusedFeatures,
    HogFeatures,
    PixelFeatures,
    RandomFeatures,
)
from sketchfusion_plugins.images import to_tensor

QUIET = {"progress": False}


class Pictures(Dataset[dict[str, Any]]):
    """Noise, each picture an instance of its own."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(count, 3, 32, 32, generator=generator) * 2 - 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": index % 2, "instance": index}


class Constant(Features):
    channels = 1

    def forward(self, image: Tensor) -> Tensor:
        return torch.ones(len(image), 1, 4, 4)


class Broken(Features):
    def forward(self, image: Tensor) -> Tensor:
        raise RuntimeError("out of memory")


@pytest.fixture
def data() -> TaskData:
    return TaskData(
        "retrieval", "here", 32, None, Pictures(6), gallery=Pictures(8), measures=("Acc@1",)
    )


class Counter:
    """Builds a model and counts how often."""

    def __init__(self, model: Callable[[], Features]) -> None:
        self.model, self.built = model, 0

    def __call__(self) -> Features:
        self.built += 1
        return self.model()


@pytest.mark.parametrize("task", ["recognition", "retrieval", "correspondence"])
def test_rungs_rise_from_chance_to_untrained(build: Any, task: str) -> None:
    encoder = build(untouched=True)
    rungs = {name: type(make()) for name, make in baselines(task, encoder).items()}
    expected: dict[str, type[Features]] = {
        "chance": RandomFeatures,
        "same place": SamePlace,
        "pixels": PixelFeatures,
        "HOG": HogFeatures,
        "CLIP": ClipFeatures,
        "SD": DiffusionFeatures,
        "SD + CLIP": ConcatenatedFeatures,
        "fused, untrained": FusedFeatures,
    }
    if task != "correspondence":
        del expected["same place"]
    assert list(rungs.items()) == list(expected.items())


def test_every_rung_is_measured(build: Any, data: TaskData) -> None:
    finished: list[tuple[str, Row]] = []
    report = evaluate(
        data,
        baselines("retrieval", build()),
        about={"seed": 0},
        finished=lambda name, row: finished.append((name, row)),
        **QUIET,
    )
    assert report.about == {
        "n": 6,
        "gallery": 8,
        "size": 32,
        "definition": "standard",
        "seed": 0,
    }
    assert finished == list(report.rows.items()) and len(finished) == 7
    assert report.rows["pixels"]["Acc@1"].value == 1, "the gallery holds the queries"
    assert all(row["Acc@1"].count == 6 for row in report.rows.values())


@pytest.mark.parametrize(("most", "said"), [(7, "fitted on 7 of 8"), (8, None)])
def test_a_report_says_that_probes_saw_a_part(
    monkeypatch: pytest.MonkeyPatch, most: int, said: str | None
) -> None:
    monkeypatch.setattr("sketchfusion_plugins.evaluation.judge.PROBED_PICTURES", most)
    data = TaskData(
        "recognition", "here", 32, None, Pictures(6), Pictures(8), categories=("even", "odd")
    )
    report = evaluate(data, {"pixels": PixelFeatures}, **QUIET)
    assert report.about.get("probe") == said
    assert ("probe fitted on 7 of 8" in report.markdown()) == (said is not None)


def test_reports_are_written_after_every_model(data: TaskData, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(data, {"first": PixelFeatures, "second": Broken}, out=tmp_path, **QUIET)
    rows = json.loads((tmp_path / "retrieval.json").read_text())["rows"]
    assert list(rows) == ["first"] and rows["first"]["Acc@1"]["value"] == 1
    assert "| first | 1.000" in (tmp_path / "retrieval.md").read_text()


def test_what_was_measured_is_not_measured_again(data: TaskData, tmp_path: Path) -> None:
    first, second = Counter(PixelFeatures), Counter(Constant)
    whole = evaluate(data, {"first": first, "second": second}, **QUIET)
    evaluate(data, {"first": first}, out=tmp_path, **QUIET)
    finished: list[str] = []
    report = evaluate(
        data,
        {"first": first, "second": second},
        out=tmp_path,
        finished=lambda name, _: finished.append(name),
        **QUIET,
    )
    assert (first.built, second.built) == (2, 2)
    assert report.rows == whole.rows and finished == ["first", "second"]
    assert report.rows["second"]["Acc@1"].value == pytest.approx(1 / 6)


def test_no_measured_row_is_lost(data: TaskData, tmp_path: Path) -> None:
    later = Counter(PixelFeatures)
    evaluate(data, {"later": later, "other": Constant}, out=tmp_path, **QUIET)
    with pytest.raises(RuntimeError, match="out of memory"):
        models = {"new": Constant, "broken": Broken, "later": later}
        evaluate(data, models, out=tmp_path, **QUIET)
    rows = json.loads((tmp_path / "retrieval.json").read_text())["rows"]
    assert list(rows) == ["new", "later", "other"]
    report = evaluate(data, {"new": Constant, "later": later}, out=tmp_path, **QUIET)
    assert list(report.rows) == ["new", "later", "other"] and later.built == 1


def test_rows_of_another_command_are_kept(data: TaskData, tmp_path: Path) -> None:
    def meanwhile() -> Any:
        evaluate(data, {"theirs": PixelFeatures, "old": PixelFeatures}, out=tmp_path, **QUIET)
        return Constant()

    evaluate(data, {"old": Constant}, out=tmp_path, **QUIET)
    models = {"first": Constant, "slow": meanwhile, "last": Constant}
    report = evaluate(data, models, out=tmp_path, **QUIET)
    assert set(report.rows) == {"first", "slow", "last", "theirs", "old"}
    assert set(json.loads((tmp_path / "retrieval.json").read_text())["rows"]) == set(report.rows)


def test_reports_on_other_data_are_kept(data: TaskData, tmp_path: Path) -> None:
    evaluate(data, {"first": PixelFeatures}, out=tmp_path, **QUIET)
    before = (tmp_path / "retrieval.json").read_bytes()
    for changed in (replace(data, size=64), replace(data, test=Pictures(5))):
        with pytest.raises(ValueError, match="Choose another folder"):
            evaluate(changed, {"first": PixelFeatures}, out=tmp_path, **QUIET)
    with pytest.raises(ValueError, match="Choose another folder"):
        evaluate(data, {"first": PixelFeatures}, about={"seed": 1}, out=tmp_path, **QUIET)
    assert (tmp_path / "retrieval.json").read_bytes() == before


def test_reports_on_exchanged_pictures_are_kept(tmp_path: Path) -> None:
    for split in ("fit", "test"):
        for index in range(4):
            path = tmp_path / "here" / split / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (60 * index, 0, 0)).save(path)

    def load(folder: str) -> TaskData:
        parts = [
            PictureDataset(
                [Picture(path, str(int(path.stem) % 2)) for path in sorted(side.iterdir())],
                transform=partial(to_tensor, size=32),
            )
            for side in (tmp_path / folder / "fit", tmp_path / folder / "test")
        ]
        return TaskData("recognition", "png", 32, None, parts[1], parts[0], categories=("0", "1"))

    out = tmp_path / "out"
    first = evaluate(load("here"), {"pixels": PixelFeatures}, out=out, **QUIET)
    assert len(first.about["files"]) == 8
    # Of a version that did not say; then elsewhere.
    told = json.loads((out / "recognition.json").read_text())
    del told["about"]["files"]
    (out / "recognition.json").write_text(json.dumps(told))
    assert evaluate(load("here"), {"pixels": Broken}, out=out, **QUIET).about == first.about
    shutil.copytree(tmp_path / "here", tmp_path / "moved")
    assert evaluate(load("moved"), {"pixels": Broken}, out=out, **QUIET).rows == first.rows
    for changed in ("fit/1.png", "test/1.png"):
        shutil.copytree(tmp_path / "here", tmp_path / changed.replace("/", "-"))
        noise = torch.randint(256, (40, 40, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(tmp_path / changed.replace("/", "-") / changed)
        with pytest.raises(ValueError, match=r"reports on files \w{8}, expected files \w{8}\. Cho"):
            evaluate(load(changed.replace("/", "-")), {"pixels": Broken}, out=out, **QUIET)


def test_reports_by_another_definition_are_kept(data: TaskData, tmp_path: Path) -> None:
    evaluate(data, {"first": PixelFeatures}, out=tmp_path, **QUIET)
    before = (tmp_path / "retrieval.json").read_bytes()
    message = "reports on definition standard, expected definition torchmetrics"
    with pytest.raises(ValueError, match=message):
        evaluate(data, {"first": Broken}, out=tmp_path, definition="torchmetrics", **QUIET)
    assert (tmp_path / "retrieval.json").read_bytes() == before


def test_only_models_that_changed_are_measured_again(data: TaskData, tmp_path: Path) -> None:
    def run(**models: tuple[Callable[[], Features], dict[str, Any]]) -> dict[str, Any]:
        evaluate(
            data,
            {name: model for name, (model, _) in models.items()},
            identities={name: identity for name, (_, identity) in models.items()},
            out=tmp_path,
            **QUIET,
        )
        found: dict[str, Any] = json.loads((tmp_path / "retrieval.json").read_text())
        return found

    plain = {"dtype": "float32"}
    first, second = Counter(PixelFeatures), Counter(Constant)
    run(first=(first, plain), second=(second, plain))
    # A third model, and the same two again.
    third = Counter(Constant)
    found = run(third=(third, {}), first=(first, plain), second=(second, plain))
    assert (first.built, second.built, third.built) == (1, 1, 1)
    assert list(found["rows"]) == ["third", "first", "second"]
    # The first has changed: its row is new, what was not asked for stays as it was measured.
    changed = Counter(Constant)
    found = run(first=(changed, {"dtype": "bfloat16"}))
    assert changed.built == 1
    assert found["rows"]["first"] == found["rows"]["second"]
    assert {name: own.get("dtype") for name, own in found["identities"].items()} == {
        "first": "bfloat16",
        "third": None,
        "second": "float32",
    }


def test_a_changed_model_that_fails_leaves_its_old_row(data: TaskData, tmp_path: Path) -> None:
    names = {"first": {"dtype": "float32"}, "second": {"dtype": "float32"}}
    models: dict[str, Any] = {"first": PixelFeatures, "second": PixelFeatures}
    evaluate(data, models, identities=names, out=tmp_path, **QUIET)
    before = json.loads((tmp_path / "retrieval.json").read_text())
    names = {"first": {"dtype": "bfloat16"}, "second": {"dtype": "bfloat16"}}
    with pytest.raises(RuntimeError, match="out of memory"):
        models = {"first": Constant, "second": Broken}
        evaluate(data, models, identities=names, out=tmp_path, **QUIET)
    after = json.loads((tmp_path / "retrieval.json").read_text())
    assert after["rows"]["second"] == before["rows"]["second"]
    assert after["identities"]["second"] == before["identities"]["second"]
    assert after["rows"]["first"] != before["rows"]["first"]
    assert after["identities"]["first"]["dtype"] == "bfloat16"


def test_rows_of_another_version_are_measured_again(
    data: TaskData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Counter(PixelFeatures)
    evaluate(data, {"first": model}, out=tmp_path, **QUIET)
    monkeypatch.setattr("sketchfusion_plugins.evaluation.ladder.__version__", "99.0")
    evaluate(data, {"first": model}, out=tmp_path, **QUIET)
    assert model.built == 2


def test_baselines_change_with_what_they_are_made_of() -> None:
    config = EncoderConfig(weights="random")

    def changed(other: EncoderConfig, seed: int = 0) -> set[str]:
        before, after = baseline_identities(config, 0), baseline_identities(other, seed)
        assert before.keys() == after.keys()
        return {name for name in before if before[name] != after[name]}

    every = {"CLIP", "SD", "SD + CLIP", "fused, untrained"}
    assert changed(EncoderConfig(weights="random")) == set()
    assert changed(config, seed=1) == {"fused, untrained"}
    assert changed(config.replace(foundation_dtype="bfloat16")) == every
    assert changed(config.replace(weights="pretrained")) == every
    assert changed(config.replace(diffusion__ensemble=4)) == every
