"""The list of held-out concepts that were seen by another name, on few pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sketchfusion_plugins.data.openmoji import Concept

Load = Callable[[str], ModuleType]
HELD = (("2702", "black scissors"), ("1F355", "slice of pizza"), ("1F98B", "butterfly"))
SEEN = ("1F46F", "person with pizza")
# By source: the name of a picture, the concept it is of, and whether it is of use.
ITEMS = {
    "noto": [("black scissors", "2702", True), ("person with pizza", "1F46F", True)],
    "icon-park": [
        ("scissors", None, True),
        ("cat", None, True),
        ("black scissors", None, True),
        ("pizza", None, False),
    ],
    "lucide": [("pizza cutter", None, True), ("house", None, True)],
}
EXPECTED = """\
2702 black scissors: scissors
1F98B butterfly: butterfly
2 of 3 held-out concepts were seen by these names, as listed in {out}; \
1 of 3 pictures and 1 of 2 line icons have names that contain a held-out concept's
"""


@pytest.fixture
def folders(
    tmp_path: Path,
    load: Load,
    write_strokes: Callable[[Path, str, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Path]:
    """Packages of three sources that are not drawn yet, and sketches."""
    seen, sources = load("seen_by_another_name"), load("sources")
    concepts = [Concept(code, name, "g", "s", tmp_path) for code, name in (*HELD, SEEN)]
    monkeypatch.setattr(seen, "load_concepts", lambda: concepts)
    monkeypatch.setattr(seen, "held_out_concepts", lambda: {code for code, _ in HELD})
    monkeypatch.setattr(seen, "fetch", lambda source, packages: packages / source)

    def list_items(source: str, packages: Path, of: Sequence[Concept]) -> Iterator[object]:
        assert (packages, of) == (tmp_path / "work" / "packages", concepts)
        for name, concept, useful in ITEMS[source]:
            picture = np.full((128, 128, 3), 255, np.uint8)
            if useful:
                picture[30:90, 30:90] = (200, 40, 40)
            yield sources.Item(name, (), concept, lambda picture=picture: picture)

    monkeypatch.setattr(seen, "list_items", list_items)
    chars = tmp_path / "work" / "packages" / "noto" / "chars.json"
    chars.parent.mkdir(parents=True)
    chars.write_text(json.dumps({"2702": "scissors", "1f355": "pizza", "1f98b": "butterfly"}))
    sketches, spg = tmp_path / "quickdraw", tmp_path / "spg"
    write_strokes(sketches, "quickdraw_strokes.npz", 24)
    with (sketches / "quickdraw.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["index", "class", "recognized", "key_id", "strokes"])
        # The former filter left the butterfly out here, though not of SPG.
        lines.writerows([i, ("butterfly", "dog")[i // 12], 1, 100 + i, 2] for i in range(24))
    spg.mkdir()
    (spg / "parts.json").write_text(json.dumps({"butterfly": ["wing"], "ice_cream": ["cone"]}))
    return {"work": tmp_path / "work", "quickdraw": sketches, "spg": spg, "out": tmp_path / "list"}


@pytest.mark.parametrize("present_names", [False, True])
def test_counts_do_not_depend_on_which_filter_drew_the_folder(
    present_names: bool,
    folders: dict[str, Path],
    load: Load,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, seen = load("data"), load("seen_by_another_name")
    work, out = folders["work"], folders["out"]
    held = [Concept(code, name, "g", "s", work) for code, name in HELD]
    leaks = data.Leaks(data.names_of(held, work) if present_names else [name for _, name in HELD])
    hidden = frozenset(concept.hexcode for concept in held)
    for source in ITEMS:
        # As stage 1 does, but for the packages, which the fixture replaces.
        data.list_items = seen.list_items
        data.draw_source(source, work, seen.load_concepts(), hidden, leaks)
    (work / "sources.json").write_text("{}")
    drawn = {row.name for row in data.load_rows(work, "pictures")}
    assert ("scissors" in drawn) is not present_names and "cat" in drawn
    seen.main([str(part) for name in folders for part in (f"--{name}", folders[name])])
    assert capsys.readouterr().out == EXPECTED.format(out=out)
    listed = json.loads(out.read_text())
    assert listed["hexcodes"] == ["1F98B", "2702"]


def test_rows_are_read_without_their_pictures(work: Path, load: Load) -> None:
    data = load("data")
    train, held_out = data.load_pictures(work)
    rows = data.load_rows(work, "pictures")
    assert sorted(map(str, rows)) == sorted(map(str, (*train.rows, *held_out.rows)))
    with pytest.raises(FileNotFoundError, match=r"no finished lines; run data\.py"):
        data.load_rows(work, "lines")
