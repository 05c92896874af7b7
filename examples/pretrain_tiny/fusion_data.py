"""What the fusion stage sees: pairs of drawings and pictures, never of a held-out concept.

Four kinds of pairs make a batch:

- emoji: OpenMoji's line drawing of a concept with its own warped picture, whose points are known,
  or, half of them drawn free-hand, with another artist's picture;
- icons: a line icon with a coloured picture, or another artist's line icon, of the same name;
- sketches: two drawings of one Quick, Draw! class by different people, or a drawing with a
  coloured picture of the concept of that name;
- parts: two drawings of one SPG class, whose strokes carry part labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from aligned_pairs import Aligned, AlignedPairs
from clip import jitter
from data import Leaks, Pictures, load_lines, load_pictures, names_of
from free_hand import strokes_of
from grounds import on_grounds
from judged_sketches import last_of_each
from named_pairs import NamedPairs
from numpy.typing import NDArray
from pens import random_style, restyle, turned
from scenes import RandomScenes
from sources import SIZE
from torch import Tensor
from training import normalise, random_affine

from sketchfusion_plugins.data.openmoji import held_out_concepts
from sketchfusion_plugins.data.openmoji_drawings import load_drawings
from sketchfusion_plugins.data.quickdraw import QuickDraw
from sketchfusion_plugins.data.spg import load_spg
from sketchfusion_plugins.data.strokes import Strokes, render, render_labels

PART_POINTS = 64
ALIGNED, ARTISTS, ICONS, SKETCHES, PARTS = 8, 12, 8, 12, 6
# Of the aligned drawings, those that are also searched for in a scene.
SCENES = 4
# Of the drawings held against other artists' pictures, those whose strokes are drawn by hand.
FREE_HAND = 0.5
ARTISTS_OF_SCENES = ("noto", "twemoji", "fluent-emoji-flat")
NO_LABEL = -1


@dataclass(frozen=True)
class FusionBatch:
    """P pairs; the first ``ALIGNED`` have matched points, the last ``PARTS`` labelled ones.

    Attributes:
        drawing: ``[P, 3, S, S]`` in -1..1.
        picture: ``[P, 3, S, S]``.
        concept: What a pair shows ``[P]``; equal numbers are positives of each other.
        subgroup: OpenMoji subgroup of the pair ``[P]``, or ``NO_LABEL``.
        sketch_class: Quick, Draw! class of the pair ``[P]``, or ``NO_LABEL``.
        aligned: The first pairs, with their points and regions.
        scenes: Four pictures each, ``[SCENES, 3, 2 S, 2 S]`` in -1..1.
        scene_masks: Which pixels of them the first drawings' concepts cover, 0 or 1.
        part_points: Points on strokes, each ``[PARTS, PART_POINTS, 2]``.
        parts: Their labels, each ``[PARTS, PART_POINTS]``.
    """

    drawing: Tensor
    picture: Tensor
    concept: Tensor
    subgroup: Tensor
    sketch_class: Tensor
    aligned: Aligned
    scenes: Tensor
    scene_masks: Tensor
    part_points: tuple[Tensor, Tensor]
    parts: tuple[Tensor, Tensor]


class FusionBatches:
    """Draws batches; the same generator gives the same batch.

    Args:
        work: Folder that `data.py` filled.
        quickdraw: Folder of Quick, Draw!, see `sketchfusion_plugins.data.quickdraw`.
        spg: Folder of SPG, see `sketchfusion_plugins.data.spg`.
        left_out: Families of OpenMoji that are left out too, with all that is named like them.

    Attributes:
        subgroups: Names of OpenMoji's subgroups.
        classes: Names of the sketch classes.
        strokes: Names of the parts that strokes are of.
    """

    def __init__(
        self, work: Path, quickdraw: Path, spg: Path, left_out: Collection[str] = ()
    ) -> None:
        held = held_out_concepts()
        drawings = load_drawings(SIZE)
        hidden = [
            concept.hexcode in held or family in left_out
            for concept, family in zip(drawings.concepts, drawings.family, strict=True)
        ]
        leaks = Leaks(
            names_of([c for c, no in zip(drawings.concepts, hidden, strict=True) if no], work)
        )
        self.drawings = drawings.subset([i for i, no in enumerate(hidden) if not no])
        self.subgroups = self.drawings.categories
        families = sorted(set(self.drawings.family))
        self.family = [families.index(name) for name in self.drawings.family]
        self.pictures = load_pictures(work)[0]
        self.by_artist = _artists(self.pictures)
        self.aligned = AlignedPairs(self.drawings)
        self.scenes = RandomScenes(self.drawings, self.pictures, ARTISTS_OF_SCENES)
        self.icons = NamedPairs(load_lines(work), self.pictures, leaks)

        self.sketches = QuickDraw(quickdraw)
        self.classes = self.sketches.categories
        self.by_class = {
            label: drawings
            for label, drawings in fitting_drawings(self.sketches).items()
            if not leaks(self.classes[label])
        }
        names = {concept.name.lower(): i for i, concept in enumerate(self.drawings.concepts)}
        self.emoji_of = {
            label: names[name.lower()]
            for label, name in enumerate(self.classes)
            if name.lower() in names
        }
        classes = {name.lower(): self.concept_of_class(i) for i, name in enumerate(self.classes)}
        emoji = {name: self.family[i] for name, i in names.items()}
        first = len(self.family) + len(self.classes)
        self.concept_of_icon = {
            name: emoji.get(name, classes.get(name, first + number))
            for number, name in enumerate(self.icons.names)
        }
        self._outlines: dict[int, Strokes] = {}
        self.strokes, drawn = load_spg(spg)
        parts = [d for d in drawn if d.split == "train" and not leaks(d.category)]
        self.parts = defaultdict(list)
        for drawing in parts:
            self.parts[drawing.category].append(drawing)
        self.part_names = sorted(self.parts)

    def concept_of_class(self, label: int) -> int:
        """Number of what a sketch class shows; an emoji's where there is one of that name."""
        emoji = self.emoji_of.get(label)
        return self.family[emoji] if emoji is not None else len(self.family) + label

    def __call__(self, generator: torch.Generator) -> FusionBatch:
        """Draw a batch."""
        draw = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        chosen = draw.choice(len(self.drawings), ALIGNED + ARTISTS, replace=False)
        lines = restyle(normalise(_channels_first(self.drawings.line[chosen])), draw, thin=True)
        for place in range(ALIGNED, len(chosen)):
            if draw.random() < FREE_HAND:
                lines[place] = self._drawn(self._outline(int(chosen[place])), draw)
        aligned = self.aligned(chosen[:ALIGNED], lines[:ALIGNED], generator, draw)
        artists = torch.stack([self._by_artist(index, draw) for index in chosen[ALIGNED:]])
        named, icons, likenesses = self._icons(draw)
        sketches, answers, labels = self._sketches(draw)
        parts = self._parts(draw)
        searched = chosen[:SCENES].tolist()
        scenes, scene_masks = zip(*(self.scenes(i, draw) for i in searched), strict=True)

        coloured = torch.cat([artists, likenesses, answers])
        # What is searched for in a picture may be small.
        coloured = random_affine(coloured, generator, degrees=20, scale=(0.5, 1.1), mirror=False)
        free = random_affine(
            torch.cat([lines[ALIGNED:], restyle(icons, draw), sketches]),
            generator,
            degrees=20,
            scale=(0.75, 1.1),
            mirror=False,
        )
        flip = torch.from_numpy(draw.random(len(free)) < 0.5)[:, None, None, None]
        coloured, free = (torch.where(flip, side.flip(-1), side) for side in (coloured, free))
        # Photographs have grounds, drawings by hand mostly none.
        coloured = torch.cat([aligned.images[1], coloured])
        pictures = ALIGNED + ARTISTS + ICONS
        coloured = torch.cat([on_grounds(coloured[:pictures], generator), coloured[pictures:]])
        part_classes = [self._class_of_part(name) for name in parts.names]
        return FusionBatch(
            drawing=torch.cat([aligned.images[0], free, parts.images[0]]),
            picture=torch.cat([jitter(coloured, generator), parts.images[1]]),
            concept=torch.tensor(
                [self.family[index] for index in chosen]
                + [self.concept_of_icon[name] for name in named]
                + [self.concept_of_class(label) for label in labels]
                + [
                    self.concept_of_class(label) if label != NO_LABEL else -2 - number
                    for number, label in enumerate(part_classes)
                ]
            ),
            subgroup=torch.tensor(
                [self.subgroups.index(self.drawings.concepts[i].subgroup) for i in chosen]
                + [NO_LABEL] * (ICONS + SKETCHES + PARTS)
            ),
            sketch_class=torch.tensor([NO_LABEL] * (len(chosen) + ICONS) + labels + part_classes),
            aligned=aligned,
            scenes=jitter(torch.stack(scenes), generator),
            scene_masks=torch.stack(scene_masks).long(),
            part_points=parts.points,
            parts=parts.labels,
        )

    def _by_artist(self, index: int, draw: np.random.Generator) -> Tensor:
        """A coloured picture of a concept, by any artist."""
        drawn = self.by_artist.get(self.drawings.concepts[index].hexcode)
        if drawn:
            return normalise(self.pictures.pixels[int(draw.choice(drawn))])
        return normalise(_channels_first(self.drawings.color[index][None]))[0]

    def _icons(self, draw: np.random.Generator) -> tuple[list[str], Tensor, Tensor]:
        names = draw.choice(self.icons.names, ICONS, replace=False).tolist()
        drawn, likenesses = zip(*(self.icons(name, draw) for name in names), strict=True)
        return names, normalise(torch.stack(drawn)), normalise(torch.stack(likenesses))

    def _sketches(self, draw: np.random.Generator) -> tuple[Tensor, Tensor, list[int]]:
        labels = draw.choice(sorted(self.by_class), SKETCHES, replace=False).tolist()
        sketches, answers = [], []
        for label in labels:
            first, second = draw.choice(self.by_class[label], 2, replace=False)
            sketches.append(self._sketch(int(first), draw))
            emoji = self.emoji_of.get(label)
            if emoji is not None and draw.random() < 0.6:
                answers.append(self._by_artist(emoji, draw))
            else:
                answers.append(self._sketch(int(second), draw))
        return torch.stack(sketches), torch.stack(answers), labels

    def _sketch(self, index: int, draw: np.random.Generator) -> Tensor:
        strokes = self.sketches.drawings.read(index)[1]
        assert isinstance(strokes, Strokes)
        return self._drawn(strokes, draw)

    def _outline(self, index: int) -> Strokes:
        if index not in self._outlines:
            svg = self.drawings.concepts[index].svg.read_bytes()
            self._outlines[index] = strokes_of(svg)
        return self._outlines[index]

    def _drawn(self, strokes: Strokes, draw: np.random.Generator) -> Tensor:
        picture = render(strokes, random_style(draw), int(draw.integers(2**31)))
        return normalise(_channels_first(picture[None]))[0]

    def _class_of_part(self, name: str) -> int:
        name = name.replace("_", " ")
        return self.classes.index(name) if name in self.classes else NO_LABEL

    def _parts(self, draw: np.random.Generator) -> _Parts:
        names = draw.choice(self.part_names, PARTS, replace=False).tolist()
        images: tuple[list[Tensor], list[Tensor]] = ([], [])
        points: tuple[list[Tensor], list[Tensor]] = ([], [])
        labels: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name in names:
            pair = draw.choice(len(self.parts[name]), 2, replace=False)
            # Left and right are not told apart by labels, but mirrored strokes look alike.
            mirrored = draw.random() < 0.5
            for side, index in enumerate(pair):
                drawing = self.parts[name][int(index)]
                strokes = turned(drawing.strokes, draw, mirrored)
                picture = render_labels(
                    strokes, drawing.label, random_style(draw), int(draw.integers(2**31))
                )
                rows = draw.integers(len(picture.label), size=PART_POINTS)
                images[side].append(normalise(_channels_first(picture.image[None]))[0])
                points[side].append(torch.from_numpy(picture.strokes.points[rows]))
                labels[side].append(torch.from_numpy(picture.label[rows]))
        return _Parts(
            names,
            (torch.stack(images[0]), torch.stack(images[1])),
            (torch.stack(points[0]), torch.stack(points[1])),
            (torch.stack(labels[0]), torch.stack(labels[1])),
        )


@dataclass(frozen=True)
class _Parts:
    names: list[str]
    images: tuple[Tensor, Tensor]
    points: tuple[Tensor, Tensor]
    labels: tuple[Tensor, Tensor]


def fitting_drawings(sketches: QuickDraw) -> dict[int, list[int]]:
    """Indices of every class's drawings but those that are for measuring alone."""
    members: dict[int, list[int]] = defaultdict(list)
    for index in (~last_of_each(sketches.labels)).nonzero()[:, 0].tolist():
        members[int(sketches.labels[index])].append(index)
    return dict(members)


def _artists(pictures: Pictures) -> dict[str, list[int]]:
    members: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(pictures.rows):
        if row.concept:
            members[row.concept].append(index)
    return dict(members)


def _channels_first(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)
