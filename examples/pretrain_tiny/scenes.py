"""Scenes of four pictures by one artist, in which to find what was drawn."""

from __future__ import annotations

import numpy as np
import torch
from data import Pictures
from grounds import solid
from torch import Tensor

from sketchfusion_plugins.data.openmoji_drawings import Drawings
from sketchfusion_plugins.data.openmoji_scenes import OpenMojiScenes

# Scenes that a concept may be searched for in.
REPEATS = 10_000
PICTURES = 4
# Of a quadrant's cells, those that say whether it holds what is asked for.
TOP_SHARE = 0.1


def drawings_by(drawings: Drawings, pixels: Tensor, numbers: Tensor) -> Drawings:
    """Drawings whose coloured pictures are another artist's.

    Args:
        drawings: N drawings.
        pixels: Pictures on white, bytes ``[M, 3, S, S]``.
        numbers: Whose each of them is, ``[M]``; only these drawings are kept, in this order.
    """
    pictures = pixels.permute(0, 2, 3, 1).numpy()
    kept = drawings.subset(numbers.tolist())
    covered = solid(pictures).astype(np.uint8) * 255
    return Drawings(kept.concepts, kept.line, pictures, covered, kept.family)


def pictures_by(artist: str, pictures: Pictures, drawings: Drawings) -> tuple[Tensor, Tensor]:
    """An artist's pictures ``[M, 3, S, S]``, and numbers ``[M]`` of the drawings they belong to."""
    drawn = {row.concept: i for i, row in enumerate(pictures.rows) if row.source == artist}
    found = [(i, drawn.get(concept.hexcode)) for i, concept in enumerate(drawings.concepts)]
    there = [(number, index) for number, index in found if index is not None]
    numbers = torch.tensor([number for number, _ in there], dtype=torch.long)
    return pictures.pixels[[index for _, index in there]], numbers


class RandomScenes:
    """Draws scenes in which a given concept is to be found.

    Args:
        drawings: The concepts.
        pictures: Coloured pictures.
        artists: Whose pictures make scenes, beside OpenMoji's own; those who drew too few concepts
            for one are left out.
    """

    def __init__(self, drawings: Drawings, pictures: Pictures, artists: tuple[str, ...]) -> None:
        everything = {index: index for index in range(len(drawings))}
        self.by_artist = [(OpenMojiScenes(drawings, repeats=REPEATS), everything)]
        for artist in artists:
            pixels, numbers = pictures_by(artist, pictures, drawings)
            if len({drawings.family[number] for number in numbers.tolist()}) <= PICTURES:
                continue
            own = drawings_by(drawings, pixels, numbers)
            items = {index: item for item, index in enumerate(numbers.tolist())}
            self.by_artist.append((OpenMojiScenes(own, repeats=REPEATS), items))

    def __call__(self, index: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A scene ``[3, 2 S, 2 S]`` in -1..1 and the pixels ``[2 S, 2 S]`` of drawing ``index``."""
        fitting = [(own, items[index]) for own, items in self.by_artist if index in items]
        scenes, item = fitting[int(draw.integers(len(fitting)))]
        found = scenes[int(draw.integers(REPEATS)) * len(scenes.drawings) + item]
        return found["photo"], found["mask"]


def best_quadrants(similarity: Tensor) -> Tensor:
    """Where the most similar tenth of a quadrant is the most similar on average.

    Args:
        similarity: ``[N, S, S]``, even S.

    Returns:
        0 to 3, row by row, ``[N]``.
    """
    side = similarity.shape[-1] // 2
    quadrants = similarity.unflatten(2, (2, side)).unflatten(1, (2, side)).transpose(2, 3)
    best = quadrants.flatten(3).topk(int(TOP_SHARE * side**2)).values.mean(3).flatten(1)
    found: Tensor = best.argmax(1)
    return found
