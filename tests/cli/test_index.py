"""``sketchfusion index build|add|search``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("faiss")


def _search(run: Any, *arguments: object) -> dict[str, list[str]]:
    lines = run("index", "search", *arguments, "--json").stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["query"]: [hit["path"] for hit in row["hits"]] for row in rows}


def test_every_picture_finds_itself(
    run: Any, pictures: Path, checkpoints: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    model = ("--model", checkpoints / "retrieval", "--size", 64)
    printed = run("index", "build", pictures, "--out", index, *model, "--json").stdout
    assert json.loads(printed) == {"index": str(index), "added": 4, "pictures": 4, "skipped": 0}
    found = _search(run, pictures, "--index", index, "--top", 2)
    assert len(found) == 4
    for query, hits in found.items():
        assert hits[0] == str(Path(query).absolute())
        assert len(hits) == 2
    again = run("index", "build", pictures, "--out", index, *model, "--json").stdout
    assert json.loads(again)["added"] == 0


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_add_uses_the_indexs_model_and_kind(
    run: Any, pictures: Path, tmp_path: Path, kind: str
) -> None:
    index = tmp_path / "index"
    model = ("--model", "hog", "--size", 72, "--kind", kind)
    run("index", "build", pictures / "more", "--out", index, *model)
    printed = run("index", "add", pictures, "--index", index, "--json").stdout
    assert json.loads(printed)["added"] == 2
    found = _search(run, pictures / "a.png", "--index", index, "--top", 9)
    (hits,) = found.values()
    assert hits[0] == str(pictures / "a.png") and len(hits) == 4


def test_relative_paths_are_the_same_pictures(
    run: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    run("index", "build", pictures, "--out", index, "--model", "pixels")
    monkeypatch.chdir(pictures)
    printed = run("index", "add", "a.png", "more", "--index", index, "--json").stdout
    assert json.loads(printed)["added"] == 0
    monkeypatch.chdir(pictures / "more")
    printed = run("index", "add", "../a.png", "../more", "--index", index, "--json").stdout
    assert json.loads(printed)["added"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--model", "pixels"), "was built with hog at 128 px"),
        (("--model", "hog", "--size", "64"), "was built with hog at 128 px"),
        (("--model", "hog", "--kind", "hnsw"), "is of kind flat, you ask for hnsw"),
    ],
)
def test_another_models_index_is_refused(
    run: Any, pictures: Path, tmp_path: Path, change: tuple[str, ...], message: str
) -> None:
    index = tmp_path / "index"
    run("index", "build", pictures / "a.png", "--out", index, "--model", "hog")
    result = run("index", "build", pictures, "--out", index, *change, status=1)
    assert message in result.stderr


def test_changed_and_moved_checkpoints(
    run: Any, pictures: Path, checkpoints: Path, tmp_path: Path
) -> None:
    index, home, moved = tmp_path / "index", tmp_path / "home", tmp_path / "moved"
    shutil.copytree(checkpoints / "retrieval", home)
    run("index", "build", pictures, "--out", index, "--model", home, "--size", 64)
    home.rename(moved)
    query = ("index", "search", pictures / "a.png", "--index", index)
    assert "Error: " in run(*query, status=1).stderr
    run(*query, "--model", moved)
    shutil.copytree(checkpoints / "correspondence", home)
    assert "is not the model that the index was built with" in run(*query, status=1).stderr


def test_blank_and_bad_pictures_are_skipped(run: Any, pictures: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = Path(shutil.copytree(pictures, tmp_path / "copy"))
    Image.new("RGB", (50, 40), "white").save(folder / "blank.png")
    (folder / "text.jpg").write_text("no picture")
    index = tmp_path / "index"
    arguments = ("index", "build", folder, "--out", index, "--model", "hog")
    result = run(*arguments, "--json", status=3)
    assert json.loads(result.stdout) == {
        "index": str(index),
        "added": 4,
        "pictures": 4,
        "skipped": 2,
    }
    assert "blank.png: its descriptor is zero" in result.stderr
    assert run(*arguments, "--strict", status=1).stderr.startswith("Error: ")


def test_search_prints_a_table(run: Any, pictures: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    run("index", "build", pictures, "--out", index, "--model", "pixels")
    shown = run("index", "search", pictures / "b.png", "--index", index, "--top", 1).stdout
    assert "1.000" in shown and "similarity" in shown


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode elsewhere")
def test_names_that_are_no_utf8(run: Any, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(pictures / "b.png", os.fsencode(folder) + b"/caf\xe9.png")
    run("index", "build", folder, "--out", tmp_path / "index", "--model", "pixels")
    command = [sys.executable, "-m", "sketchfusion_plugins", "index", "search"]
    command += [str(folder), "--index", str(tmp_path / "index")]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "COLUMNS": "400"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "caf\\udce9.png" in result.stdout


def test_folder_without_an_index(run: Any, pictures: Path, tmp_path: Path) -> None:
    result = run("index", "search", pictures, "--index", tmp_path, status=1)
    assert "holds no index" in result.stderr


def test_merged_indexes_find_the_pictures_of_both(run: Any, pictures: Path, tmp_path: Path) -> None:
    a, b, out = (tmp_path / name for name in ("a", "b", "out"))
    run("index", "build", pictures / "a.png", "--out", a, "--model", "hog")
    run("index", "build", pictures, "--out", b, "--model", "hog")
    result = run("index", "merge", a, b, "--out", out, "--json", status=3)
    assert json.loads(result.stdout) == {
        "index": str(out),
        "added": 4,
        "pictures": 4,
        "skipped": 1,
    }
    assert "a.png: several indexes hold it" in result.stderr
    for query, hits in _search(run, pictures, "--index", out, "--top", 1).items():
        assert hits == [str(Path(query).absolute())]
    refused = run("index", "merge", a, b, "--out", tmp_path / "strict", "--strict", status=1)
    assert "1 key(s) are in more than one index" in refused.stderr
    assert "has learned no lists" in run("index", "begin", "--like", a, "--out", b, status=1).stderr


def test_an_index_is_begun_with_the_lists_of_another(
    run: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr("sketchfusion_plugins.index.approximation.MINIMUM_ROWS", 2)
    a, b, c = (tmp_path / name for name in "abc")
    run("index", "build", pictures, "--out", a, "--model", "hog", "--kind", "ivf")
    said = run("index", "begin", "--like", a, "--out", b).stdout
    assert " ".join(said.split()) == f"{b} is empty and shares the lists of {a}."
    begun = json.loads(run("index", "begin", "--like", a, "--out", c, "--json").stdout)
    assert begun == {"index": str(c), "pictures": 0}
    said = run("index", "add", pictures / "more", "--index", b).stdout
    assert " ".join(said.split()) == f"2 pictures added; {b} holds 2."
    for query, hits in _search(run, pictures / "more", "--index", b, "--top", 1).items():
        assert hits == [str(Path(query).absolute())]


def test_ctrl_c_is_one_line_and_loses_no_picture(
    run: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sketchfusion_plugins.inference import answers

    index, real, calls = tmp_path / "index", answers.describe, []

    def stopped(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(answers, "describe", stopped)
    build = ("index", "build", pictures, "--out", index, "--model", "hog", "--batch-size", 1)
    assert run(*build, status=130).stderr == "stopped.\n"
    assert json.loads(run(*build, "--json").stdout)["added"] == 1
    found = _search(run, pictures, "--index", index, "--top", 1)
    assert all(hits == [str(Path(query).absolute())] for query, hits in found.items())


def test_a_reader_that_has_read_enough_is_no_error(
    run: Any, pictures: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    run("index", "build", pictures, "--out", index, "--model", "pixels")
    command = [sys.executable, "-m", "sketchfusion_plugins", "index", "search", str(pictures)]
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*command, "--index", str(index), "--json"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")
