"""Stage 1: coloured pictures with captions, and line icons, drawn once into shards.

python examples/pretrain_tiny/data.py --work DIR

Drops pictures whose name contains a held-out concept's name, whatever the artist; held-out
concepts themselves are drawn for measuring losses, never for training. What is drawn already is
kept, so a run that was killed goes on. ``DIR/sources.json`` records packages, versions, licences
and counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from sources import EMOJI, LINES, SIZE, SOURCES, Item, describe, fetch, list_items, words
from torch import Tensor
from tqdm import tqdm

from sketchfusion_plugins.data.emoji_artists import plain_code
from sketchfusion_plugins.data.openmoji import Concept, held_out_concepts, load_concepts
from sketchfusion_plugins.files import write_safetensors, write_text

CHOICES = (*SOURCES, *LINES)
SHARD = 1000
SMALLEST_INK = 0.01
SMALLEST_COLOURED = 0.02
SPELT = ("doughnut", "donut")


@dataclass(frozen=True)
class Row:
    """What is known of a picture.

    Attributes:
        source: Where it comes from.
        name: What it shows.
        keywords: Further words for captions.
        concept: Hexcode of the OpenMoji concept, "" for other pictures.
        held_out: For measuring alone.
    """

    source: str
    name: str
    keywords: tuple[str, ...]
    concept: str
    held_out: bool

    def caption(self, generator: np.random.Generator) -> str:
        """Name and, mostly, some keywords in random order."""
        chosen: list[str] = []
        if self.keywords and generator.random() < 0.8:
            count = min(len(self.keywords), int(generator.integers(1, 5)))
            chosen = list(generator.choice(self.keywords, count, replace=False))
        return " ".join([self.name, *chosen])


@dataclass(frozen=True, eq=False)
class Pictures:
    """N pictures uint8 ``[N, 3, SIZE, SIZE]`` with their rows."""

    pixels: Tensor
    rows: tuple[Row, ...]

    def subset(self, indices: Sequence[int]) -> Pictures:
        """Some of them, in the order given."""
        return Pictures(self.pixels[list(indices)], tuple(self.rows[i] for i in indices))

    def groups(self) -> Tensor:
        """Number of every picture's concept ``[N]``; pictures without one are their own."""
        number: dict[str, int] = {}
        keys = [row.concept or f"#{index}" for index, row in enumerate(self.rows)]
        return torch.tensor([number.setdefault(key, len(number)) for key in keys])


def load_pictures(work: Path) -> tuple[Pictures, Pictures]:
    """Coloured training and held-out pictures that stage 1 has drawn.

    Raises:
        FileNotFoundError: It has drawn none, or not all of them.
    """
    pictures = _load(work, "pictures")
    held_out = [row.held_out for row in pictures.rows]
    return (
        pictures.subset([i for i, held in enumerate(held_out) if not held]),
        pictures.subset([i for i, held in enumerate(held_out) if held]),
    )


def load_lines(work: Path) -> Pictures:
    """Line icons that stage 1 has drawn, for the fusion stage alone.

    Raises:
        FileNotFoundError: It has drawn none, or not all of them.
    """
    return _load(work, "lines")


def load_rows(work: Path, folder: str) -> list[Row]:
    """What is known of all pictures in ``pictures`` or ``lines``, without their pixels.

    Raises:
        FileNotFoundError: Stage 1 has drawn none, or not all of them.
    """
    return [row for path in _shards(work, folder) for row in _read_rows(path)]


def _load(work: Path, folder: str) -> Pictures:
    pixels, rows = [], []
    for path in _shards(work, folder):
        with safe_open(path, framework="pt") as file:
            pixels.append(file.get_tensor("pictures"))
        rows += _read_rows(path)
    return Pictures(torch.cat(pixels), tuple(rows))


def _shards(work: Path, folder: str) -> list[Path]:
    paths = sorted((work / folder).glob("*.safetensors"))
    if not paths or not (work / "sources.json").is_file():
        raise FileNotFoundError(f"{work} holds no finished {folder}; run data.py --work {work}.")
    return paths


def _read_rows(path: Path) -> list[Row]:
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["rows"])
    return [Row(**{**values, "keywords": tuple(values["keywords"])}) for values in described]


def save_shard(path: Path, pictures: Sequence[NDArray[np.uint8]], rows: Sequence[Row]) -> None:
    """Write a shard atomically; pictures are uint8 ``[SIZE, SIZE, 3]``."""
    pixels = np.stack(pictures) if pictures else np.empty((0, SIZE, SIZE, 3), np.uint8)
    write_safetensors(
        {"pictures": torch.from_numpy(pixels).permute(0, 3, 1, 2)},
        path,
        {"rows": json.dumps([vars(row) for row in rows])},
    )


class Leaks:
    """Tells names that contain a held-out concept's name, plurals alike."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = {frozenset(stems(name)) for name in names}
        self.names.discard(frozenset())

    def __call__(self, name: str) -> bool:
        """Whether the name does."""
        own = stems(name)
        return any(held <= own for held in self.names)


def names_of(concepts: Sequence[Concept], work: Path) -> list[str]:
    """Names of concepts: Unicode's old ones, and those that present sets of emoji use."""
    wanted = {plain_code(concept.hexcode) for concept in concepts}
    names = [concept.name for concept in concepts]
    for source in EMOJI:
        file = work / "packages" / source / "chars.json"
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            names += [name for code, name in found.items() if plain_code(code) in wanted]
    return list(dict.fromkeys(name.replace("doughnut", spelt) for name in names for spelt in SPELT))


def stems(name: str) -> set[str]:
    """Words of a name without the plural's ``s``."""
    return {word.removesuffix("s") if len(word) > 3 else word for word in words(name)}


def draw_source(
    source: str, work: Path, concepts: Sequence[Concept], hidden: frozenset[str], leaks: Leaks
) -> None:
    """Draw a source into shards that are not there yet."""
    items = list_items(source, work / "packages", concepts)
    kept = (item for item in items if item.concept in hidden or not leaks(item.name))
    for number, shard in enumerate(_batches(kept)):
        folder = "lines" if source in LINES else "pictures"
        path = work / folder / f"{source}-{number:03d}.safetensors"
        if path.is_file():
            continue
        pictures, rows = [], []
        for item in tqdm(shard, desc=f"{source} {number}", leave=False, disable=None):
            picture = draw_item(item, source)
            if picture is None:
                continue
            held = item.concept in hidden
            pictures.append(picture)
            rows.append(Row(source, item.name, item.keywords, item.concept or "", held))
        save_shard(path, pictures, rows)


def draw_item(item: Item, source: str) -> NDArray[np.uint8] | None:
    """Its picture, uint8 ``[SIZE, SIZE, 3]``; None where that is of no use."""
    try:
        picture = item.draw()
    except (ValueError, OSError):
        # Clip art is made by many hands; some of it no renderer reads.
        return None
    return picture if _useful(picture, item.concept is None and source not in LINES) else None


def _batches(items: Iterator[Item]) -> Iterator[list[Item]]:
    while shard := list(islice(items, SHARD)):
        yield shard


def _useful(picture: NDArray[np.uint8], must_be_coloured: bool) -> bool:
    """Neither blank nor, outside the emoji, black on white."""
    if float((picture.min(-1) < 250).mean()) < SMALLEST_INK:
        return False
    spread = picture.max(-1).astype(int) - picture.min(-1)
    return not must_be_coloured or float((spread > 40).mean()) > SMALLEST_COLOURED


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder outside the repository")
    parser.add_argument("--sources", nargs="+", choices=CHOICES, default=CHOICES)
    options = parser.parse_args(arguments)
    work: Path = options.work
    concepts = load_concepts()
    hidden = held_out_concepts()
    for source in set(EMOJI) & set(options.sources):
        fetch(source, work / "packages")
    leaks = Leaks(names_of([c for c in concepts if c.hexcode in hidden], work))
    for source in tqdm(options.sources, desc="sources", disable=None):
        draw_source(source, work, concepts, hidden, leaks)
    manifest = {source: describe(source, work / "packages") for source in options.sources}
    if {"openmoji", *EMOJI} & set(options.sources):
        fetch("emojilib", work / "packages")
        manifest["emojilib (keywords)"] = describe("emojilib", work / "packages")
    write_text(json.dumps(manifest, indent=1) + "\n", work / "sources.json")
    train, test = load_pictures(work)
    lines = load_lines(work).rows if {*LINES} & {*options.sources} else ()
    for source in options.sources:
        drawn = (*train.rows, *lines), test.rows
        counted = [sum(row.source == source for row in side) for side in drawn]
        manifest[source] |= {"pictures": str(counted[0]), "held_out": str(counted[1])}
    write_text(json.dumps(manifest, indent=1) + "\n", work / "sources.json")
    print(
        f"{len(train.rows)} pictures to train on, {len(test.rows)} held out, {len(lines)} line "
        f"icons, in {work}"
    )


if __name__ == "__main__":
    main()
