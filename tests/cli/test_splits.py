"""``train`` and ``evaluate`` hold out the same: the split has its own seed, which adapters keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmengine")

from sketchfusion_plugins.adapter_file import Split, read_split
from sketchfusion_plugins.data.pictures import by_concept_split
from sketchfusion_plugins.data.sources import load_task_data
from sketchfusion_plugins.tasks.load import build_task

# Of different sizes, so that the number of judged sketches tells splits apart.
SKETCHES = {"ant": 1, "bee": 2, "cow": 4, "dog": 8, "eel": 16}
QUICK = ("--batch-size", 2)


def judged(seed: int) -> int:
    """Sketches of the held-out classes."""
    return sum(SKETCHES[name] for name in by_concept_split(SKETCHES, 0.3, seed)[1])


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sketches and photos of five classes."""
    from PIL import Image, ImageDraw

    folder = tmp_path_factory.mktemp("paired")
    for number, (name, count) in enumerate(SKETCHES.items()):
        image = Image.new("RGB", (32, 32), "white")
        ImageDraw.Draw(image).ellipse((3, 4, 20 + 2 * number, 28), outline="black", width=3)
        for kind in ("sketches", "photos"):
            (folder / kind / name).mkdir(parents=True)
        image.save(folder / "photos" / name / "one.jpg")
        for sketch in range(count):
            image.save(folder / "sketches" / name / f"one-{sketch + 1}.png")
    return f"paired:{folder}"


def train(run: Any, data: str, work: Path, *options: object, status: int = 0) -> Any:
    arguments = ("train", "retrieval", "--data", data, "--size", 32, "--iterations", 1, *QUICK)
    return run(*arguments, "--work-dir", work, *options, "--json", status=status)


def test_the_judged_split_is_the_one_trained_on(run: Any, paired: str, tmp_path: Path) -> None:
    assert judged(0) != judged(1), "else the test would show nothing"
    tiny = ("--model", "tiny", "--weights", "random")
    first = tmp_path / "first"
    trained = json.loads(train(run, paired, first, *tiny, "--split-seed", 1).stdout)
    assert trained["about"]["split seed"] == 1 and trained["about"]["seed"] == 0
    adapters = first / "adapters"
    assert read_split(adapters) == Split("paired", 1), "folders differ between machines"
    judging = ("evaluate", "retrieval", "--data", paired, *QUICK, "--json", "--model", adapters)
    found = json.loads(run(*judging, "--seed", 7).stdout)
    assert found["about"]["split seed"] == 1 and "seed" not in found["about"]
    assert found["about"]["n"] == judged(1)
    assert found["rows"] == trained["rows"]
    assert json.loads(run(*judging, "--split-seed", 1).stdout)["rows"] == trained["rows"]
    refused = run(*judging, "--split-seed", 0, status=1).stderr
    assert f"another split than that of seed 0 of paired: {adapters} on that of seed 1" in refused
    assert len(refused.splitlines()) == 1

    # So does a training that starts from it, and one that goes on.
    second = tmp_path / "second"
    begun = ("--model", adapters)
    for resume in ((), ("--resume",)):
        again = json.loads(train(run, paired, second, *begun, *resume).stdout)
        assert again["about"]["split seed"] == 1
    for other in (("--split-seed", 0), ("--set", "data.seed=0")):
        message = train(run, paired, tmp_path / "third", *begun, *other, status=1).stderr
        assert "trained on another split than that of seed 0" in message
    assert not (tmp_path / "third").exists()
    message = train(run, paired, first, *tiny, "--resume", status=1).stderr
    assert "data.seed 0, the run has 1" in message


def test_what_was_trained_on_under_another_protocol_is_refused(
    run: Any, build: Any, tmp_path: Path
) -> None:
    task = build_task("retrieval", build())
    task.split = Split("sketchy-25", 0)
    task.save_pretrained(tmp_path / "adapters")
    common = ("retrieval", "--data", "sketchy:mine", "--model", tmp_path / "adapters")
    work = tmp_path / "work"
    for arguments in (("evaluate", *common), ("train", *common, "--work-dir", work)):
        message = run(*arguments, status=1).stderr
        assert "trained on data that retrieval of sketchy keeps to judge on" in message
        assert f"{tmp_path / 'adapters'} on retrieval of sketchy-25" in message
        assert len(message.splitlines()) == 1
    assert not work.exists()


def test_other_data_in_the_same_layout_take_a_label(run: Any, build: Any, tmp_path: Path) -> None:
    task = build_task("recognition", build(), classes=("cat", "dog"))
    task.split = Split("tuberlin", 0)
    task.save_pretrained(tmp_path / "adapters")
    common = ("evaluate", "retrieval", "--model", tmp_path / "adapters", "--data")
    refused = run(*common, f"tuberlin:{tmp_path}", status=1).stderr
    assert "in the layout of tuberlin take a label: tuberlin@LABEL:FOLDER" in refused
    # Past the guard, to the data.
    assert "png" in run(*common, f"tuberlin@mine:{tmp_path}", status=1).stderr


def test_the_seed_of_training_leaves_the_split_alone(run: Any, paired: str, tmp_path: Path) -> None:
    tiny = ("--model", "tiny", "--weights", "random")
    train(run, paired, tmp_path, *tiny, "--seed", 1)
    assert read_split(tmp_path / "adapters") == Split("paired", 0)
    judging = ("evaluate", "retrieval", "--data", paired, *QUICK, "--json", "--model", "hog")
    plain = json.loads(run(*judging, "--seed", 1, "--size", 32).stdout)
    assert plain["about"]["split seed"] == 0 and plain["about"]["n"] == judged(0)


def test_data_remember_their_split(paired: str) -> None:
    data = load_task_data("retrieval", paired, 32, seed=1)
    assert data.split_seed == 1
    assert set(data.categories) == set(by_concept_split(SKETCHES, 0.3, 1)[1])
