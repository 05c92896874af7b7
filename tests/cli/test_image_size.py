"""The size that a checkpoint was trained on is every command's default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

TASKS = {
    "features": "retrieval",
    "index": "retrieval",
    "match": "correspondence",
    "recognise": "recognition",
    "segment": "query_segmentation",
}


def answer(run: Any, command: str, pictures: Path, out: Path, *options: object) -> Any:
    """What a command prints or writes."""
    sketch, photo = pictures / "a.png", pictures / "b.png"
    out.mkdir()
    if command == "features":
        run(command, sketch, "--out", out / "found.jsonl", *options)
        return json.loads((out / "found.jsonl").read_text().splitlines()[-1])
    if command == "index":
        run(command, "build", sketch, photo, "--out", out / "index", *options)
        found = run(command, "search", photo, "--index", out / "index", "--json").stdout
        return json.loads(found)
    if command == "segment":
        run(command, sketch, photo, "--out", out / "mask.png", *options)
        return (out / "mask.png").read_bytes()
    inputs = (sketch,) if command == "recognise" else (sketch, photo)
    return json.loads(run(command, *inputs, *options, "--json").stdout)


@pytest.mark.parametrize("command", TASKS)
def test_size_is_what_the_model_was_trained_on(
    run: Any, pictures: Path, checkpoints: Path, sized: Path, tmp_path: Path, command: str
) -> None:
    plain, trained = (("--model", folder / TASKS[command]) for folder in (checkpoints, sized))
    expected = answer(run, command, pictures, tmp_path / "plain", *plain, "--size", 72)
    assert answer(run, command, pictures, tmp_path / "trained", *trained) == expected


@pytest.mark.parametrize("folder", ["checkpoints", "sized"])
def test_a_size_that_is_given_wins(
    run: Any, pictures: Path, tmp_path: Path, folder: str, request: pytest.FixtureRequest
) -> None:
    from sketchfusion_plugins.inference.gallery import GalleryModel

    model = ("--model", request.getfixturevalue(folder) / "retrieval")
    run("index", "build", pictures / "a.png", "--out", tmp_path, *model, "--size", 96)
    assert GalleryModel.read(tmp_path).size == 96


@pytest.mark.parametrize(("folder", "size"), [("checkpoints", 128), ("sized", 72)])
def test_an_index_remembers_the_size(
    run: Any,
    pictures: Path,
    tmp_path: Path,
    folder: str,
    size: int,
    request: pytest.FixtureRequest,
) -> None:
    from sketchfusion_plugins.inference.gallery import GalleryModel

    model = ("--model", request.getfixturevalue(folder) / "retrieval")
    run("index", "build", pictures / "a.png", "--out", tmp_path, *model)
    assert GalleryModel.read(tmp_path).size == size
