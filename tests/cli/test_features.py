"""``sketchfusion features``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TINY = ("--model", "tiny", "--weights", "random", "--size", "64")


def _rows(path: Path) -> dict[str, list[float]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["path"]: row["descriptor"] for row in rows}


def test_descriptors_are_the_models_own(run: Any, pictures: Path, tmp_path: Path) -> None:
    from sketchfusion_plugins.images import open_image, to_tensor
    from sketchfusion_plugins.inference.models import open_model

    out = tmp_path / "made" / "features.jsonl"
    printed = run("features", pictures, *TINY, "--out", out, "--batch-size", 3, "--json").stdout
    assert json.loads(printed) == {"out": str(out), "written": 4, "present": 0, "skipped": 0}
    rows = _rows(out)
    names = ["a.png", "b.png", "more/c.png", "more/d.png"]
    assert list(rows) == [str(pictures / name) for name in names]
    model = open_model("tiny", weights="random")
    for name in names:
        image = to_tensor(open_image(pictures / name), 64)[None]
        expected = model.describe(image)[0].detach().numpy()
        np.testing.assert_allclose(rows[str(pictures / name)], expected, atol=2e-5)


def test_paths_at_home(
    run: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    out = tmp_path / "features.jsonl"
    printed = run("features", pictures, "--model", "hog", "--out=~/features.jsonl", "--json").stdout
    assert json.loads(printed)["out"] == str(out) and len(_rows(out)) == 4


def test_known_pictures_are_not_described_again(run: Any, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.jsonl"
    arguments = ("--model", "hog", "--size", 64, "--out", out, "--json")
    run("features", pictures / "b.png", *arguments)
    first = out.read_text()
    # A crash in the middle of a line: what was whole stays, the rest is cut off.
    out.write_text(first + '{"path": "half')
    printed = run("features", pictures, *arguments).stdout
    assert json.loads(printed)["written"] == 3
    assert out.read_text().startswith(first)
    assert len(_rows(out)) == 4


@pytest.mark.parametrize("change", [("--model", "pixels"), ("--model", "hog", "--size", "72")])
def test_another_models_file_is_refused(
    run: Any, pictures: Path, tmp_path: Path, change: tuple[str, ...]
) -> None:
    out = tmp_path / "features.jsonl"
    run("features", pictures, "--model", "hog", "--size", 64, "--out", out)
    before = out.read_bytes()
    result = run("features", pictures, "--out", out, *change, status=1)
    assert "was made by the model" in result.stderr
    assert out.read_bytes() == before


def test_what_changes_descriptors_without_weights_is_another_model(
    run: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sketchfusion_plugins.inference import models

    out = tmp_path / "features.jsonl"
    model = ("--model", "clip:tiny", "--weights", "random", "--size", 64, "--batch-size", 1)
    arguments = ("features", pictures, *model, "--out", out)
    run(*arguments)
    before = out.read_bytes()
    # The same model goes on.
    out.write_bytes(before[: before.index(b"\n") + 1])
    assert "3 descriptors written" in run(*arguments).stdout
    assert out.read_bytes() == before
    open_model = models.open_model

    def open_other(*names: Any, **options: Any) -> Any:
        model = open_model(*names, **options)
        model.encoder.semantic.mean = (0.2, 0.2, 0.2)
        return model

    monkeypatch.setattr(models, "open_model", open_other)
    assert "was made by the model" in run(*arguments, status=1).stderr
    assert out.read_bytes() == before


def test_all_formats_hold_the_same(run: Any, pictures: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    from safetensors import safe_open

    for suffix in ("jsonl", "parquet", "safetensors"):
        out = tmp_path / f"features.{suffix}"
        run("features", pictures, "--model", "pixels", "--size", 64, "--out", out)
    rows = _rows(tmp_path / "features.jsonl")
    expected = np.array(list(rows.values()), dtype=np.float32)
    table = parquet.read_table(tmp_path / "features.parquet").to_pydict()
    assert table["path"] == list(rows)
    np.testing.assert_array_equal(np.float32(table["descriptor"]), expected)
    with safe_open(tmp_path / "features.safetensors", framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("descriptors"), expected)
        assert json.loads(file.metadata()["paths"]) == list(rows)
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl", ".parquet", ".safetensors"}


def test_bad_files_are_skipped_and_told(run: Any, pictures: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pictures, tmp_path / "copy"))
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "text.jpg").write_text("no picture")
    out = tmp_path / "features.safetensors"
    arguments = ("features", folder, folder / "none.png", "--model", "hog", "--out", out)
    result = run(*arguments, "--json", status=3)
    assert json.loads(result.stdout)["written"] == 4
    assert json.loads(result.stdout)["skipped"] == 3
    for name in ("broken.png", "text.jpg", "none.png"):
        (line,) = [line for line in result.stderr.splitlines() if name in line]
        assert line.startswith("skipped: ")
    out.unlink()
    result = run(*arguments, "--strict", status=1)
    assert result.stderr.startswith("Error: ")
    assert not out.exists()


def test_nothing_but_bad_files_is_an_error(run: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    out = tmp_path / "features.parquet"
    result = run("features", bad, "--model", "hog", "--out", out, status=1)
    assert "none of 1 files is a picture" in result.stderr
    assert not out.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are Unicode")
def test_a_name_that_parquet_cannot_hold_does_not_lose_the_rest(
    run: Any, pictures: Path, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = Path(shutil.copytree(pictures, tmp_path / "copy"))
    odd = folder / "caf\udce9.png"
    shutil.copy(folder / "a.png", odd)
    arguments = ("features", folder, "--model", "pixels", "--size", 64, "--json", "--out")
    result = run(*arguments, tmp_path / "a.parquet", status=3)
    assert json.loads(result.stdout)["written"] == 4
    assert "skipped: " in result.stderr and "its path is not UTF-8" in result.stderr
    table = parquet.read_table(tmp_path / "a.parquet")
    assert len(table) == 4
    run(*arguments, tmp_path / "a.jsonl")
    assert str(odd) in _rows(tmp_path / "a.jsonl")
    only = run("features", odd, "--model", "hog", "--out", tmp_path / "b.parquet", status=1)
    assert "none of 1 files is a picture" in only.stderr and "not UTF-8" in only.stderr


def test_too_long_a_header_is_refused_before_the_model_is_opened(
    run: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sketchfusion_plugins.inference import descriptor_files, models

    monkeypatch.setattr(descriptor_files, "LARGEST_HEADER", 1100)
    monkeypatch.setattr(models, "open_model", None)
    out = tmp_path / "a.safetensors"
    result = run("features", pictures, "--model", "hog", "--out", out, status=1)
    assert "Write a file ending in .jsonl or .parquet" in result.stderr


def test_pictures_of_the_same_relative_name_are_not_taken_for_known(
    run: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path("..", "all.jsonl")
    arguments = ("features", ".", "--model", "pixels", "--size", 64, "--out", out, "--json")
    for name, source in (("cats", "a.png"), ("dogs", "b.png")):
        (tmp_path / name).mkdir()
        shutil.copy(pictures / source, tmp_path / name / "1.png")
    monkeypatch.chdir(tmp_path / "cats")
    run(*arguments)
    before = out.read_bytes()
    assert list(_rows(out)) == ["1.png"]
    monkeypatch.chdir(tmp_path / "dogs")
    error = run(*arguments, status=1).stderr
    assert f"'1.png' relative to {tmp_path / 'cats'}, you are in {tmp_path / 'dogs'}" in error
    assert out.read_bytes() == before
    monkeypatch.chdir(tmp_path / "cats")
    shutil.copy("1.png", "2.png")
    assert json.loads(run(*arguments).stdout)["present"] == 1
    assert list(_rows(out)) == ["1.png", "2.png"]


def test_unknown_suffix_and_model_are_one_line(run: Any, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.csv"
    result = run("features", pictures, "--model", "hog", "--out", out, status=1)
    assert "valid suffixes: .jsonl, .parquet, .safetensors" in result.stderr
    result = run("features", pictures, "--model", "nonsense", "--out", "a.jsonl", status=1)
    assert "no model 'nonsense'" in result.stderr
    assert "cleandift" in result.stderr and result.stderr.count("\n") == 1


def test_cache_serves_other_adapters(
    run: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sketchfusion_plugins.diffusion import Diffusion

    cache, seen = tmp_path / "cache", []
    encode = Diffusion.encode

    def counted(self: Any, image: Any, *options: Any) -> Any:
        seen.append(len(image))
        return encode(self, image, *options)

    monkeypatch.setattr(Diffusion, "encode", counted)
    described = {}
    for name, options in {
        "plain": (),
        "first": ("--cache", cache),
        "again": ("--cache", cache),
    }.items():
        out = tmp_path / f"{name}.jsonl"
        run("features", pictures, *TINY, "--out", out, *options)
        described[name] = _rows(out)
    assert described["plain"] == described["first"] == described["again"]
    assert seen == [4, 4]
    index = tmp_path / "index"
    run("index", "build", pictures, *TINY, "--out", index, "--cache", cache)
    assert seen == [4, 4]
    result = run("features", pictures, "--model", "hog", "--out", out, "--cache", cache, status=1)
    assert "Leave --cache out" in result.stderr


def test_the_limit_of_the_cache_is_the_users(
    run: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sketchfusion_plugins.cache as caching

    limits, use_cache = [], caching.use_cache

    def noted(encoder: Any, store: Any) -> None:
        limits.append(store.limit)
        use_cache(encoder, store)

    monkeypatch.setattr(caching, "use_cache", noted)
    model, cache, index = TINY, ("--cache", tmp_path / "cache"), tmp_path / "index"
    out = tmp_path / "a.jsonl"
    run("features", pictures, *model, "--out", out, *cache)
    run("features", pictures, *model, "--out", out, *cache, "--cache-limit", 3)
    run("index", "build", pictures, *model, "--out", index, *cache, "--cache-limit", 4)
    run("index", "add", pictures, "--index", index, *cache, "--cache-limit", 5)
    assert limits == [gib * 2**30 for gib in (20, 3, 4, 5)]
    result = run("features", pictures, *model, "--out", out, "--cache-limit", 3, status=1)
    assert "got --cache-limit 3 without --cache" in result.stderr


def test_a_warning_is_one_line(pictures: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sketchfusion_plugins", "features", str(pictures / "a.png")]
    command += [*TINY, "--out", str(tmp_path / "a.jsonl")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = [line for line in result.stderr.splitlines() if "untrained" in line]
    assert line.startswith("Warning: injection and aggregation of 'tiny' are untrained, drawn from")
    assert "warnings.warn" not in result.stderr


def test_a_file_that_does_not_exist(run: Any, tmp_path: Path) -> None:
    arguments = ("features", "nope", "--model", "hog", "--out", tmp_path / "a.jsonl")
    assert run(*arguments, status=1).stderr.endswith(": nope does not exist.\n")
