"""OpenMoji drawn once into arrays, and split so that near copies stay together.

A woman and a man on the same bicycle, or two clocks, are nearly one drawing. A split by concept
alone would put one of them on either side; `Drawings.split` keeps such families whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sketchfusion_plugins.data.openmoji import (
    Concept,
    held_out_concepts,
    load_concepts,
    rasterise,
    render,
)
from sketchfusion_plugins.data.pictures import seed_of
from sketchfusion_plugins.data.svg import parse_svg

# People, sexes, hair, direction, and the joints of a sequence: what near copies differ in.
PEOPLE_POINT = re.compile(r"1F46[6-9]|1F47[4-6]|1F9D[1-3]|1F9B[0-3]|264[02]|27A1|FE0F|200D")
PEOPLE = re.compile(
    r"\b(?:m[ae]n|wom[ae]n|person|people|boys?|girls?|male|female|old(?:er)?|adult|child|baby|"
    r"mrs|mr|mother|father|prince|princess|facing right|with|and|in|s)\b|[^a-z ]"
)
NEAR_COPY = 0.9
COMPARED_AT = 64


@dataclass(frozen=True, eq=False)
class Drawings:
    """Concepts with their pictures, all of one size.

    Attributes:
        concepts: N concepts.
        line: Black line drawings on white, uint8 ``[N, S, S, 3]``.
        color: Coloured pictures on white, uint8 ``[N, S, S, 3]``.
        coverage: How much of every pixel the coloured picture covers, uint8 ``[N, S, S]``.
        family: Name of every concept's family, see `families`.

    Raises:
        ValueError: The parts do not agree with each other.
    """

    concepts: tuple[Concept, ...]
    line: NDArray[np.uint8]
    color: NDArray[np.uint8]
    coverage: NDArray[np.uint8]
    family: tuple[str, ...]

    def __post_init__(self) -> None:
        square = (len(self.concepts), self.line.shape[1], self.line.shape[1])
        shapes = (self.line.shape, self.color.shape, self.coverage.shape, (len(self.family),))
        expected = ((*square, 3), (*square, 3), square, square[:1])
        if shapes != expected or not self.concepts:
            raise ValueError(
                f"line, color, coverage and family of {len(self.concepts)} concepts, at least one, "
                f"must have the shapes {expected}, got {shapes}."
            )

    def __len__(self) -> int:
        return len(self.concepts)

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return int(self.line.shape[1])

    @property
    def categories(self) -> tuple[str, ...]:
        """Subgroups present, sorted: class names in the order of the labels."""
        return tuple(sorted({concept.subgroup for concept in self.concepts}))

    def subset(self, indices: Sequence[int]) -> Drawings:
        """Some of the drawings, in the order given."""
        chosen = list(indices)
        return Drawings(
            tuple(self.concepts[i] for i in chosen),
            self.line[chosen],
            self.color[chosen],
            self.coverage[chosen],
            tuple(self.family[i] for i in chosen),
        )

    def split(self) -> tuple[Drawings, Drawings]:
        """Training and held-out drawings, see `held_out_concepts`; no family is on both sides.

        Raises:
            ValueError: One side is empty.
        """
        hidden = held_out_concepts()
        held_out = [concept.hexcode in hidden for concept in self.concepts]
        if all(held_out) or not any(held_out):
            raise ValueError(
                f"expected concepts to train on and held-out ones, got {sum(held_out)} held out of "
                f"{len(self)}; raise the limit."
            )
        sides = [
            self.subset([i for i, hidden in enumerate(held_out) if hidden == side])
            for side in (False, True)
        ]
        return sides[0], sides[1]


def load_drawings(
    size: int = 128,
    root: Path | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> Drawings:
    """Draw OpenMoji; about 9 ms a concept at 128 px, 12 s for all.

    Args:
        size: Side of the pictures in pixels.
        root: Folder with OpenMoji's SVG files; the installed package's by default.
        limit: Number of concepts, spread evenly over all; None for all.
        progress: Show progress bars, when standard error is a terminal.

    Raises:
        ModuleNotFoundError: A package of the ``quickstart`` extra is missing.
        FileNotFoundError: ``root`` holds no SVG file.
        ValueError: ``size`` or ``limit`` is below 1, or a drawing cannot be read.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}.")
    concepts = load_concepts(root)
    if limit is not None and limit < len(concepts):
        concepts = [concepts[i * len(concepts) // limit] for i in range(limit)]
    line = render(concepts, size, "line", progress)
    color = render(concepts, size, "color", progress)
    coverage = np.stack([_coverage(c, picture) for c, picture in zip(concepts, color, strict=True)])
    return Drawings(tuple(concepts), line, color, coverage, families(concepts, line))


def families(concepts: Sequence[Concept], line: NDArray[np.uint8]) -> tuple[str, ...]:
    """Group drawings that are nearly the same.

    Two concepts are of one family, directly or through others, when

    - their code points agree after people, sexes, hair and direction are dropped (a runner, a woman
      running, a man running facing right; all plain people and families are one), or
    - their names agree after such words are dropped (an older man, an older woman), or
    - each has `NEAR_COPY` of its ink within a pixel of the other's ink at `COMPARED_AT` px (the 24
      clock faces, several smileys).

    Args:
        concepts: N concepts.
        line: Their line drawings, uint8 ``[N, S, S, 3]``.

    Returns:
        N names; a family is named by the hexcode of its first member.
    """
    root = list(range(len(concepts)))

    def find(index: int) -> int:
        while root[index] != index:
            root[index] = root[root[index]]
            index = root[index]
        return index

    def join(a: int, b: int) -> None:
        low, high = sorted((find(a), find(b)))
        root[high] = low

    first: dict[tuple[str, str], int] = {}
    for index, concept in enumerate(concepts):
        for key in (("points", _code_points(concept)), ("name", _plain_name(concept))):
            join(first.setdefault(key, index), index)
    similar = ink_overlap(line) >= NEAR_COPY
    for a, b in torch.triu(similar, 1).nonzero().tolist():
        join(a, b)
    return tuple(concepts[find(index)].hexcode for index in range(len(concepts)))


def ink_overlap(line: NDArray[np.uint8]) -> Tensor:
    """How much of two drawings' ink coincides, up to a pixel at `COMPARED_AT` px.

    Args:
        line: Dark on light, uint8 ``[N, S, S, 3]``.

    Returns:
        ``[N, N]``, 0..1, symmetric: the smaller of the two shares of ink near the other's ink.
    """
    grey = torch.from_numpy(line[..., 0]).to(torch.float32)[:, None]
    ink = (F.adaptive_avg_pool2d(grey, COMPARED_AT) < 160).to(torch.float32)
    near = F.max_pool2d(ink, 3, stride=1, padding=1).flatten(1)
    ink = ink.flatten(1)
    share = ink @ near.T / ink.sum(1, keepdim=True).clamp(min=1)
    return torch.minimum(share, share.T)


def normalise(picture: NDArray[np.uint8]) -> Tensor:
    """Picture ``[H, W, 3]``, 0..255, as the encoder's ``[3, H, W]``, -1..1."""
    return torch.from_numpy(picture).permute(2, 0, 1).to(torch.float32) / 127.5 - 1


def labels_of(concepts: Sequence[Concept], categories: Sequence[str]) -> Tensor:
    """Index of every concept's subgroup among the categories, int64 ``[N]``."""
    number = {name: index for index, name in enumerate(categories)}
    return torch.tensor([number[concept.subgroup] for concept in concepts])


def item_generator(seed: int, task: str, concept: Concept, repeat: int) -> torch.Generator:
    """Generator of one sample, the same in every process and run, whatever else is loaded."""
    return torch.Generator().manual_seed(seed_of(seed, task, concept.hexcode, repeat))


def checked_repeats(repeats: int) -> int:
    """The number itself.

    Raises:
        ValueError: It is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}.")
    return repeats


def locate(index: int, count: int, repeats: int) -> tuple[int, int]:
    """Repeat and concept of a sample; all concepts come before the first repeats.

    Raises:
        IndexError: There is no such sample.
    """
    if not -count * repeats <= index < count * repeats:
        raise IndexError(f"index {index} of {count * repeats} samples")
    return divmod(index % (count * repeats), count)


def _code_points(concept: Concept) -> str:
    points = concept.hexcode.upper().split("-")
    rest = [point for point in points if not PEOPLE_POINT.fullmatch(point)]
    # A farmer is a person and an ear of rice, and no near copy of the ear of rice.
    someone = "person " if PEOPLE_POINT.fullmatch(points[0]) else ""
    return someone + "-".join(rest)


def _plain_name(concept: Concept) -> str:
    return " ".join(PEOPLE.sub(" ", concept.name).split()) or "person"


def _coverage(concept: Concept, on_white: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Opacity, from what a black background changes."""
    root = parse_svg(concept.svg.read_bytes())
    left, top, width, height = root.get("viewBox", "0 0 72 72").replace(",", " ").split()
    background = {"x": left, "y": top, "width": width, "height": height, "fill": "#000000"}
    root.insert(0, ElementTree.Element("{http://www.w3.org/2000/svg}rect", background))
    on_black = rasterise(ElementTree.tostring(root), on_white.shape[0])
    # Both start from the same paint, so white minus black is what shines through.
    through = np.abs(on_white.astype(np.int16) - on_black).max(-1)
    coverage: NDArray[np.uint8] = (255 - through).astype(np.uint8)
    return coverage
