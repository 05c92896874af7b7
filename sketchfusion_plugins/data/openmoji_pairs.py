"""OpenMoji for recognition, retrieval and matching: line drawings are sketches, pictures photos.

Line drawing and coloured picture of a concept are aligned pixel for pixel, so the picture is warped
wherever a pair is matched. Everything follows from ``seed`` and the index: an item is the same in
every run and worker process. To see several warps of a concept, raise ``repeats``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sketchfusion_plugins.data.openmoji import Concept
from sketchfusion_plugins.data.openmoji_drawings import (
    Drawings,
    checked_repeats,
    item_generator,
    labels_of,
    locate,
    normalise,
)
from sketchfusion_plugins.data.pictures import instance_number, label_names
from sketchfusion_plugins.data.warps import WarpConfig, inside, random_warp

INK = 128


class EmojiPictures(Dataset[dict[str, Any]]):
    """Pictures of concepts, for recognition and retrieval.

    ``EmojiPictures(d.concepts, d.line)`` are queries and ``EmojiPictures(d.concepts, d.color)`` is
    the gallery of the same `Drawings`; other artists' pictures make a harder gallery
    (`sketchfusion_plugins.data.emoji_artists`).

    Samples: ``image`` [3, S, S] in -1..1; ``label``, the subgroup's index in ``categories``;
    ``instance``, the concept's number; ``key``, ``"<hexcode>/<repeat>"``.

    Args:
        concepts: N concepts.
        pictures: uint8 ``[N, S, S, 3]``.
        categories: Subgroups in the order of the labels; by default those present, sorted.
        warp: How far to warp; None leaves pictures alone.
        seed: Another seed, other warps.
        repeats: Times that every concept occurs, each with its own warp.

    Raises:
        ValueError: Shapes disagree, a category is missing, or ``repeats`` is below 1.
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        pictures: NDArray[np.uint8],
        categories: Sequence[str] | None = None,
        warp: WarpConfig | None = None,
        seed: int = 0,
        repeats: int = 1,
    ) -> None:
        if len(concepts) != len(pictures) or pictures.ndim != 4 or pictures.shape[-1] != 3:
            raise ValueError(
                f"expected pictures [{len(concepts)}, S, S, 3], one per concept, got "
                f"{list(pictures.shape)}."
            )
        self.concepts, self.pictures = tuple(concepts), pictures
        self.categories = label_names((c.subgroup for c in concepts), categories)
        self.warp, self.seed, self.repeats = warp, seed, checked_repeats(repeats)
        self.labels = labels_of(concepts, self.categories).repeat(repeats)
        self.instances = torch.tensor(
            [instance_number(c.subgroup, c.hexcode) for c in concepts]
        ).repeat(repeats)

    def __len__(self) -> int:
        return len(self.concepts) * self.repeats

    def __getitem__(self, index: int) -> dict[str, Any]:
        repeat, item = locate(index, len(self.concepts), self.repeats)
        concept = self.concepts[item]
        image = normalise(self.pictures[item])
        if self.warp is not None:
            generator = item_generator(self.seed, "pictures", concept, repeat)
            image = random_warp(generator, self.warp).image(image)
        return {
            "image": image,
            "label": int(self.labels[item]),
            "instance": int(self.instances[item]),
            "key": f"{concept.hexcode}/{repeat}",
        }


class OpenMojiCorrespondence(Dataset[dict[str, Any]]):
    """Line drawing and warped coloured picture of one concept, with points on the drawing's ink.

    Samples: ``source``, the line drawing [3, S, S] in -1..1; ``target``, the coloured picture;
    ``source_points``, ``target_points`` [K, 2], x and y in pixels; ``visible`` [K], Boolean;
    ``label``, the subgroup's index; ``key``, ``"<hexcode>/<repeat>"``. Points are spread by
    farthest point sampling, from a random one on; where the ink runs out, they repeat and are not
    visible.

    Args:
        drawings: The concepts.
        points: Number K.
        warp: How far the coloured picture is warped.
        source_warp: How far the line drawing is warped on its own; None leaves it alone.
        categories: Subgroups in the order of the labels; by default those present, sorted.
        seed: Another seed, other warps and points.
        repeats: Times that every concept occurs, each with its own warp and points.

    Raises:
        ValueError: ``points`` or ``repeats`` is below 1, or a category is missing.
    """

    def __init__(
        self,
        drawings: Drawings,
        points: int = 8,
        warp: WarpConfig | None = None,
        source_warp: WarpConfig | None = None,
        categories: Sequence[str] | None = None,
        seed: int = 0,
        repeats: int = 1,
    ) -> None:
        if points < 1:
            raise ValueError(f"points must be at least 1, got {points}.")
        self.drawings, self.points = drawings, points
        self.warp, self.source_warp = warp or WarpConfig(), source_warp
        self.categories = label_names(drawings.categories, categories)
        self.labels = labels_of(drawings.concepts, self.categories)
        self.seed, self.repeats = seed, checked_repeats(repeats)

    def __len__(self) -> int:
        return len(self.drawings) * self.repeats

    def __getitem__(self, index: int) -> dict[str, Any]:
        repeat, item = locate(index, len(self.drawings), self.repeats)
        concept, size = self.drawings.concepts[item], self.drawings.size
        generator = item_generator(self.seed, "correspondence", concept, repeat)
        source = normalise(self.drawings.line[item])
        aligned, visible = spread_points(self.drawings.line[item], self.points, generator)
        warp = random_warp(generator, self.warp)
        target_points, shown = warp.points(aligned, size, size)
        visible, source_points = visible & shown, aligned
        if self.source_warp is not None:
            own_warp = random_warp(generator, self.source_warp)
            source = own_warp.image(source)
            source_points, shown = own_warp.points(aligned, size, size)
            visible = visible & shown
        return {
            "source": source,
            "target": warp.image(normalise(self.drawings.color[item])),
            "source_points": source_points,
            "target_points": target_points,
            "visible": visible,
            "label": int(self.labels[item]),
            "key": f"{concept.hexcode}/{repeat}",
        }


def spread_points(
    line: NDArray[np.uint8], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Points on the ink, far from each other: farthest point sampling from a random one on.

    Args:
        line: Dark on light, uint8 ``[H, W, 3]``.
        count: Number K.
        generator: Draws the first point.

    Returns:
        Centres of dark pixels ``[K, 2]``, float32, x and y; ``[K]``, Boolean: False for what had to
        be repeated because the ink ran out.
    """
    rows, columns = np.nonzero(line[..., 0] < INK)
    if not len(rows):
        return torch.zeros(count, 2), torch.zeros(count, dtype=torch.bool)
    ink = torch.from_numpy(np.stack([columns, rows], 1)).to(torch.float32) + 0.5
    chosen = [int(torch.randint(len(ink), (), generator=generator))]
    distance = torch.full((len(ink),), torch.inf)
    distinct = [True]
    while len(chosen) < count:
        distance = torch.minimum(distance, (ink - ink[chosen[-1]]).square().sum(1))
        chosen.append(int(distance.argmax()))
        distinct.append(bool(distance[chosen[-1]] > 0))
    points = ink[chosen]
    return points, torch.tensor(distinct) & inside(points, line.shape[0], line.shape[1])
