"""SPG as segmentation data: what is drawn, labelled, written, resumed and refused."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sketchfusion_plugins.data.spg import Drawing, draw, load_spg, write_spg
from sketchfusion_plugins.data.strokes import place
from sketchfusion_plugins.stroke_metrics import labels_at, read_points

PARTS = {"pig": ["ear", "body"], "ant": ["head", "legs", "eye"]}
ROWS = [(0, "pig", "train"), (1, "ant", "train"), (2, "ant", "valid"), (3, "pig", "valid")]


def polyline(*corners: tuple[int, int], steps: int = 20) -> NDArray[np.int16]:
    pieces = [
        np.linspace(start, stop, steps, endpoint=False)
        for start, stop in itertools.pairwise(corners)
    ]
    return np.concatenate([*pieces, [corners[-1]]]).astype(np.int16)


def write_source(folder: Path) -> Path:
    """Four drawings: a box, labelled 1, and a diagonal across it, labelled 0."""
    folder.mkdir(parents=True)
    box = polyline((0, 0), (200, 0), (200, 200), (0, 200), (0, 0))
    diagonal = polyline((0, 0), (200, 200))
    xy, stroke, part, offset = [], [], [], [0]
    for index, _, _ in ROWS:
        xy += [box + index, diagonal + index]
        stroke += [np.zeros(len(box)), np.ones(len(diagonal))]
        part += [np.ones(len(box)), np.zeros(len(diagonal))]
        offset.append(offset[-1] + len(box) + len(diagonal))
    np.savez(
        folder / "spg_strokes.npz",
        xy=np.concatenate(xy).astype(np.int16),
        stroke=np.concatenate(stroke).astype(np.int16),
        part=np.concatenate(part).astype(np.uint8),
        offset=np.array(offset),
    )
    lines = ["index,class,split,quickdraw_key_id,strokes"]
    lines += [f"{index},{category},{split},7,2" for index, category, split in ROWS]
    (folder / "spg.csv").write_text("\n".join(lines) + "\n")
    (folder / "parts.json").write_text(json.dumps(PARTS))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "spg")


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_is_read(source: Path) -> None:
    classes, drawings = load_spg(source)
    assert classes == ["ant: head", "ant: legs", "ant: eye", "pig: ear", "pig: body"]
    assert [(d.category, d.split) for d in drawings] == [
        ("pig", "train"),
        ("ant", "train"),
        ("ant", "val"),
        ("pig", "val"),
    ]
    assert set(drawings[0].label) == {3, 4}
    assert set(drawings[1].label) == {0, 1}
    assert drawings[2].xy[0].tolist() == [2, 2]


def test_place_keeps_the_aspect_ratio_and_a_margin() -> None:
    xy = np.array([[-10, 40], [190, 60]], np.float32)
    placed = place(xy, 160)
    np.testing.assert_allclose(placed, [[10, 73], [150, 87]])
    np.testing.assert_allclose(place(xy[:1], 160), [[80, 80]])


def test_labels_lie_on_the_ink() -> None:
    xy = np.array([[0, 0], [100, 0], [100, 100], [0, 100]], np.float32)
    drawing = Drawing(0, "pig", "train", xy, np.array([0, 0, 1, 1]), np.array([3, 3, 4, 4]))
    image, mask, points = draw(drawing, 64, 2.0)
    assert image.shape == (64, 64, 3)
    assert mask.dtype == np.uint8
    np.testing.assert_allclose(points, [[4, 4], [60, 4], [60, 60], [4, 60]])
    # A line of width two at y = 4 covers rows 3 and 4, one at y = 60 rows 59 and 60.
    assert (mask[3:5, 5:59] == 3).all()
    assert (mask[59:61, 5:59] == 4).all()
    assert set(np.unique(mask)) == {3, 4, 255}
    assert (image[3:5, 6:58] < 40).all()
    assert (image[10:50] == 255).all()
    assert (image[..., 0] < 128)[mask != 255].mean() > 0.8


def test_a_dot_is_drawn() -> None:
    xy = np.array([[0, 0], [100, 100], [100, 100]], np.float32)
    drawing = Drawing(0, "pig", "train", xy, np.array([0, 1, 1]), np.array([1, 2, 2]))
    image, mask, _ = draw(drawing, 64, 2.0)
    assert mask[3:5, 3:5].min() == 1
    assert (mask == 2).any()
    assert (image < 128).any()


def test_layout_and_points(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_spg(source, out, 64, progress=False)
    names = {"train": ["ant_00001", "pig_00000"], "val": ["ant_00002", "pig_00003"]}
    for split, expected in names.items():
        for kind, mode in (("images", "RGB"), ("annotations", "L")):
            files = sorted((out / kind / split).iterdir())
            assert [path.name for path in files] == [f"{name}.png" for name in expected]
            with Image.open(files[0]) as picture:
                assert (picture.mode, picture.size) == (mode, (64, 64))
    assert len(json.loads((out / "meta.json").read_text())["classes"]) == 5
    points = read_points(out / "points" / "val.safetensors")
    assert points.names == ("ant_00002", "pig_00003")
    rows = points.rows(1)
    assert points.label[rows].unique().tolist() == [3, 4]
    assert points.stroke[rows].unique().tolist() == [0, 1]
    # Where nothing crosses, a point lies on a pixel of its label.
    mask = np.array(Image.open(out / "annotations/val/pig_00003.png"))
    import torch

    right = labels_at(torch.from_numpy(mask), points.xy[rows]) == points.label[rows]
    assert right.float().mean() > 0.9


def test_a_second_run_changes_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_spg(source, out, 64, progress=False)
    before = contents(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    write_spg(source, out, 64, progress=False)
    assert contents(out) == before
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    write_spg(source, tmp_path / "other", 64, progress=False)
    assert contents(tmp_path / "other") == before


def test_resumes_after_a_crash(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    write_spg(source, whole, 64, progress=False)
    replace, calls = Path.replace, []

    def fail(path: Path, target: os.PathLike[str]) -> Path:
        calls.append(target)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_spg(source, out, 64, progress=False)
    monkeypatch.undo()
    assert 0 < len(contents(out)) < len(contents(whole))
    write_spg(source, out, 64, progress=False)
    assert contents(out) == contents(whole)


def test_limit(source: Path, tmp_path: Path) -> None:
    rows = (source / "spg.csv").read_text() + "0,ant,train,7,2\n"
    (source / "spg.csv").write_text(rows)
    write_spg(source, tmp_path / "out", 64, limit=1, progress=False)
    assert len(list((tmp_path / "out/images/train").iterdir())) == 2


def test_refusals(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_spg(source, out, 64, progress=False)
    with pytest.raises(ValueError, match=r"holds data written with .*'size': 64.*expected .*96"):
        write_spg(source, out, 96, progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    with pytest.raises(ValueError, match=r"not empty and has no meta\.json"):
        write_spg(source, tmp_path / "mine", 64, progress=False)
    # What is refused is left as it is.
    (tmp_path / "mine/.my.unfinished").mkdir()
    (tmp_path / "mine/.my.unfinished/page.txt").touch()
    with pytest.raises(ValueError, match=r"not empty and has no meta\.json"):
        write_spg(source, tmp_path / "mine", 64, progress=False)
    assert (tmp_path / "mine/.my.unfinished/page.txt").exists()
    (tmp_path / "mine/meta.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"holds data written with \[1\], expected"):
        write_spg(source, tmp_path / "mine", 64, progress=False)
    # As a run leaves it that is killed before its first file is there.
    (tmp_path / "begun/.meta.json.unfinished").mkdir(parents=True)
    write_spg(source, tmp_path / "begun", 64, limit=1, progress=False)
    with pytest.raises(ValueError, match="size must be at least 32"):
        write_spg(source, tmp_path / "new", 16, progress=False)
    with pytest.raises(FileNotFoundError, match=r"spg\.csv is missing; SPG needs"):
        write_spg(tmp_path, tmp_path / "new", progress=False)
    with pytest.raises(FileNotFoundError, match="is written with the SPG data set"):
        read_points(tmp_path / "none.safetensors")
    rows = (source / "spg.csv").read_text()
    (source / "spg.csv").write_text(rows + "9,pig,train,7,2\n")
    with pytest.raises(ValueError, match="unknown split, class or index"):
        load_spg(source)
    (source / "spg.csv").write_text(rows)
    (source / "parts.json").write_text(json.dumps({**PARTS, "pig": ["ear"]}))
    with pytest.raises(ValueError, match=r"line 2: drawing 0 \(pig\) has a part of 1 or more"):
        load_spg(source)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("spg.csv", "index,class\n0,pig\n", "no column split; found index, class"),
        ("spg.csv", "index,class,split\n-1,pig,train\n", "unknown split, class or index"),
        ("spg.csv", "index,class,split\nx,pig,train\n", "unknown split, class or index"),
        ("parts.json", "{", r"parts\.json: expected part names by class"),
        ("parts.json", "[]", r"parts\.json: expected part names by class"),
        ("spg_strokes.npz", "PK", r"spg_strokes\.npz is no \.npz file, or cut off"),
    ],
)
def test_spoiled_files_are_named(name: str, text: str, message: str, source: Path) -> None:
    (source / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_spg(source)


@pytest.mark.skipif("SPG_FOLDER" not in os.environ, reason="SPG_FOLDER does not name SPG's folder")
def test_the_real_data() -> None:
    classes, drawings = load_spg(os.environ["SPG_FOLDER"])
    assert len(classes) == 86
    assert sum(d.split == "train" for d in drawings) == 13_000
    assert sum(d.split == "val" for d in drawings) == 1_000
    generator = np.random.default_rng(0)
    for index in generator.choice(len(drawings), 50, replace=False):
        drawing = drawings[index]
        _, mask, points = draw(drawing, 128, 2.0)
        rows, columns = points.astype(int).clip(0, 127)[:, ::-1].T
        # Crossing strokes hide points; nothing else may.
        assert (mask[rows, columns] == drawing.label).mean() > 0.85
        assert (mask[rows, columns] != 255).mean() > 0.99
