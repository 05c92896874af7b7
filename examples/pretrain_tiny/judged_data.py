"""What the table is measured on, and what its probes are fitted on.

Nothing that is fitted (probes, thresholds, means) sees a held-out concept or drawing. Of a family
of near copies one concept is judged, so that identical drawings count once. Pictures are bytes,
``[N, 1 or 3, S, S]``; everything is the same in every run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from data import Pictures, load_pictures
from judged_sketches import SPG_DRAWINGS, Labelled, PartDrawings, load_part_drawings, load_sketches
from numpy.typing import NDArray
from scenes import drawings_by, pictures_by
from sources import SIZE, fetch, words
from torch import Tensor

from sketchfusion_plugins.data.openmoji import Concept, held_out_concepts, rasterise
from sketchfusion_plugins.data.openmoji_drawings import (
    Drawings,
    item_generator,
    labels_of,
    load_drawings,
    normalise,
)
from sketchfusion_plugins.data.openmoji_pairs import OpenMojiCorrespondence
from sketchfusion_plugins.data.openmoji_parts import CLASSES, part_mask
from sketchfusion_plugins.data.openmoji_scenes import OpenMojiScenes
from sketchfusion_plugins.data.warps import AUGMENTATION, Warp, WarpConfig, random_warp

SEED = 0
# Warps that every judged drawing is seen under; its score is their mean.
WARPS = 3
SMALLEST_CLASS = 12
PART_DRAWINGS = 400
# OpenMoji's classes; hair is rare and counts as object.
PARTS = tuple(name for name in CLASSES if name != "hair")
ARTISTS = ("openmoji", "noto", "twemoji", "fluent-emoji-flat")
PICTURES_PER_ARTIST = 50
FLUENT_3D = "fluent-emoji"
CANVAS, SMALLEST_OBJECT = 2 * SIZE, 64
FITTED_SCENES = 60


@dataclass(frozen=True, eq=False)
class Scenes:
    """Canvases of four pictures.

    Attributes:
        pixels: ``[N, 3, CANVAS, CANVAS]``.
        masks: Pixels of what is searched for, Boolean ``[N, CANVAS, CANVAS]``.
        drawings: Number of the drawing that is searched for, ``[N]``.
    """

    pixels: Tensor
    masks: Tensor
    drawings: Tensor

    @property
    def quadrants(self) -> Tensor:
        """Where it is: 0 to 3, row by row, ``[N]``."""
        side = CANVAS // 2
        parts = self.masks.unflatten(2, (2, side)).unflatten(1, (2, side))
        found: Tensor = parts.sum((2, 4)).flatten(1).argmax(1)
        return found


class JudgedData:
    """All of it, each part made when it is first asked for.

    Args:
        work: Folder that `data.py` filled.
        quickdraw: Folder of Quick, Draw!, see `sketchfusion_plugins.data.quickdraw`.
        spg: Folder of SPG, see `sketchfusion_plugins.data.spg`.
        packages: Folder that Fluent's 3D pictures are fetched to.
        limit: Rough number of concepts, classes and drawings, for a trial; None for all.
        without: Hexcodes of held-out concepts that are not judged.
        spg_drawings: Drawings of every class that SPG's probes are fitted on.
    """

    def __init__(
        self,
        work: Path,
        quickdraw: Path,
        spg: Path,
        packages: Path,
        limit: int | None = None,
        without: Collection[str] = (),
        spg_drawings: int = SPG_DRAWINGS,
    ) -> None:
        self.work, self.quickdraw_folder, self.spg_folder = work, quickdraw, spg
        self.packages, self.limit, self.without = packages, limit, frozenset(without)
        self.spg_drawings = spg_drawings

    @cached_property
    def drawings(self) -> tuple[Drawings, Drawings]:
        """Seen ones, in random order, and held-out ones, one of each family."""
        drawings = load_drawings(SIZE, limit=None if self.limit is None else 6 * self.limit)
        hidden = held_out_concepts()
        order = np.random.default_rng(SEED).permutation(len(drawings)).tolist()
        seen = [i for i in order if drawings.concepts[i].hexcode not in hidden]
        first: dict[str, int] = {}
        for index, concept in enumerate(drawings.concepts):
            if concept.hexcode in hidden:
                first.setdefault(drawings.family[index], index)
        judged = [i for i in first.values() if drawings.concepts[i].hexcode not in self.without]
        return drawings.subset(seen), drawings.subset(judged)

    @cached_property
    def queries(self) -> Tensor:
        """Held-out line drawings, warped: ``[WARPS * n, 3, S, S]``, all of one warp first."""
        held = self.drawings[1]
        return torch.cat([_warped(held, repeat) for repeat in range(WARPS)])

    @cached_property
    def seen_lines(self) -> Tensor:
        """Seen line drawings, each warped once."""
        return _warped(self.drawings[0], 0)

    @cached_property
    def seen_pictures(self) -> Tensor:
        """Some seen concepts' coloured pictures by several artists."""
        pictures, found = self.pictures[0], []
        for artist in ARTISTS:
            own = [i for i, row in enumerate(pictures.rows) if row.source == artist]
            found += own[:: max(1, len(own) // PICTURES_PER_ARTIST)][:PICTURES_PER_ARTIST]
        return pictures.pixels[found]

    @cached_property
    def galleries(self) -> dict[str, Labelled]:
        """Held-out pictures by other artists; labels are numbers of held-out drawings."""
        return {
            "Noto": self._by_artist(self.pictures[1], self.drawings[1]),
            "Fluent 3D": self._fluent_3d(),
        }

    @cached_property
    def subgroups(self) -> tuple[Tensor, Tensor]:
        """Class of every seen and of every held-out drawing, -1 for those of small classes."""
        seen, held = self.drawings
        counts = Counter(concept.subgroup for concept in seen.concepts)
        smallest = SMALLEST_CLASS if self.limit is None else 2
        names = sorted(name for name, count in counts.items() if count >= smallest)
        everything = (*names, *sorted({*seen.categories, *held.categories} - {*names}))
        fit, test = (labels_of(side.concepts, everything) for side in (seen, held))
        small = len(names)
        if not bool((test < small).any()):
            raise ValueError(
                f"limit {self.limit} leaves no subgroup to recognise; raise --limit to 12 or more."
            )
        return torch.where(fit < small, fit, -1), torch.where(test < small, test, -1)

    @cached_property
    def sketches(self) -> tuple[Labelled, Labelled]:
        """Quick, Draw!: drawings to fit on, and the last ones of every class."""
        return load_sketches(self.quickdraw_folder, self.limit)

    @cached_property
    def part_drawings(self) -> tuple[PartDrawings, PartDrawings]:
        """SPG: drawings of the train part to fit on, and the valid part."""
        return load_part_drawings(self.spg_folder, self.limit, self.spg_drawings)

    @cached_property
    def correspondence(self) -> OpenMojiCorrespondence:
        """Line drawings and strongly warped pictures of the held-out concepts."""
        return OpenMojiCorrespondence(self.drawings[1], 8, WarpConfig(), seed=SEED)

    @cached_property
    def part_masks(self) -> tuple[Tensor, Tensor]:
        """Indices into `PARTS` for the first seen lines and for the first warp of the queries."""
        seen, held = self.drawings
        return _masks(seen.concepts[:PART_DRAWINGS]), _masks(held.concepts)

    @cached_property
    def scenes(self) -> tuple[Scenes, Scenes]:
        """Scenes of Noto's pictures of seen concepts, some, and of all held-out ones."""
        sides = []
        for drawings, pictures, count in zip(
            self.drawings, self.pictures, (FITTED_SCENES, None), strict=True
        ):
            artist = self._by_artist(pictures, drawings)
            sides.append(_scenes(drawings, artist, count))
        return sides[0], sides[1]

    @cached_property
    def pictures(self) -> tuple[Pictures, Pictures]:
        """Coloured pictures of concepts that the foundations saw, and held-out ones."""
        train, test = (
            side.subset([i for i, row in enumerate(side.rows) if row.source in ARTISTS])
            for side in load_pictures(self.work)
        )
        return train, test

    def _by_artist(self, pictures: Pictures, drawings: Drawings, artist: str = "noto") -> Labelled:
        return Labelled(*pictures_by(artist, pictures, drawings))

    def _fluent_3d(self) -> Labelled:
        """No stage ever trained on this style; its package names no code points."""
        folder = fetch(FLUENT_3D, self.packages)
        collection = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        side = collection.get("height", 32)
        icons = {"".join(words(name)): icon for name, icon in collection["icons"].items()}
        pictures, labels = [], []
        for number, concept in enumerate(self.drawings[1].concepts):
            icon = icons.get("".join(words(concept.name)))
            if icon is not None:
                svg = (
                    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}">'
                    f"{icon['body']}</svg>"
                )
                pictures.append(rasterise(svg.encode(), SIZE))
                labels.append(number)
        return Labelled(_channels_first(np.stack(pictures)), torch.tensor(labels))


def _warp(concept: Concept, repeat: int) -> Warp:
    return random_warp(item_generator(SEED, "judged", concept, repeat), AUGMENTATION)


def _warped(drawings: Drawings, repeat: int) -> Tensor:
    images = [
        _warp(concept, repeat).image(normalise(line))
        for concept, line in zip(drawings.concepts, drawings.line, strict=True)
    ]
    return _bytes(torch.stack(images))


def _masks(concepts: Sequence[Concept]) -> Tensor:
    number = {"hair": PARTS.index("object")} | {name: i for i, name in enumerate(PARTS)}
    merged = torch.tensor([number[name] for name in CLASSES])
    masks = []
    for concept in concepts:
        mask = torch.from_numpy(part_mask(concept.svg.read_bytes(), SIZE)).long()
        masks.append(_warp(concept, 0).mask(merged[mask]))
    return torch.stack(masks)


def _scenes(drawings: Drawings, artist: Labelled, count: int | None) -> Scenes:
    used = slice(None if count is None else 4 * count)
    own = drawings_by(drawings, artist.pixels[used], artist.labels[used])
    scenes = OpenMojiScenes(own, seed=SEED)
    chosen, pixels, masks = [], [], []
    for index in range(len(scenes)):
        item = scenes[index]
        rows, columns = item["mask"].nonzero().unbind(1)
        if len(rows) and max(int(np.ptp(rows)), int(np.ptp(columns))) + 1 >= SMALLEST_OBJECT:
            chosen.append(int(artist.labels[index]))
            pixels.append(_bytes(item["photo"]))
            masks.append(item["mask"])
        if len(chosen) == count:
            break
    return Scenes(torch.stack(pixels), torch.stack(masks), torch.tensor(chosen))


def _bytes(image: Tensor) -> Tensor:
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _channels_first(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)
