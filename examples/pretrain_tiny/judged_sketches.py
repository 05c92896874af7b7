"""Free-hand sketches that the table is measured on: Quick, Draw!'s classes and SPG's parts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sources import SIZE
from torch import Tensor
from tqdm import tqdm

from sketchfusion_plugins.data.quickdraw import QuickDraw
from sketchfusion_plugins.data.spg import Drawing, draw, load_spg
from sketchfusion_plugins.data.strokes import Strokes, StrokeStyle, render
from sketchfusion_plugins.stroke_metrics import LabelledPoints, categories_of

HELD_OUT_DRAWINGS = 5
STROKE_WIDTH = 2.0
# Of every class, to fit on.
SPG_DRAWINGS = 100


@dataclass(frozen=True, eq=False)
class Labelled:
    """Pictures ``[N, 1 or 3, S, S]`` with their classes ``[N]``."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class PartDrawings:
    """Drawings ``[D, 1, S, S]`` with labelled points, and the category of every class."""

    pixels: Tensor
    points: LabelledPoints
    category: Tensor


def load_sketches(folder: Path, limit: int | None = None) -> tuple[Labelled, Labelled]:
    """Quick, Draw!'s drawings to fit on, and the last ones of every class.

    Args:
        folder: See `sketchfusion_plugins.data.quickdraw`.
        limit: Number of classes; None for all.
    """
    names = None if limit is None else QuickDraw(folder).categories[:limit]
    sketches = QuickDraw(folder, categories=names)
    style = StrokeStyle(SIZE, STROKE_WIDTH)
    pictures = np.empty((len(sketches), 1, SIZE, SIZE), np.uint8)
    for index in tqdm(range(len(sketches)), desc="Quick, Draw!", disable=None, leave=False):
        strokes = sketches.drawings.read(index)[1]
        assert isinstance(strokes, Strokes)
        pictures[index, 0] = render(strokes, style)[..., 0]
    pixels = torch.from_numpy(pictures)
    held = last_of_each(sketches.labels)
    return (
        Labelled(pixels[~held], sketches.labels[~held]),
        Labelled(pixels[held], sketches.labels[held]),
    )


def load_part_drawings(
    folder: Path, limit: int | None = None, fitted: int = SPG_DRAWINGS
) -> tuple[PartDrawings, PartDrawings]:
    """SPG: some drawings of the train part to fit on, and the valid part.

    Args:
        folder: See `sketchfusion_plugins.data.spg`.
        limit: For a trial: two drawings of every class; None for all.
        fitted: Drawings of every class to fit on.
    """
    classes, drawings = load_spg(folder)
    members: dict[tuple[str, str], list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        members[drawing.split, drawing.category].append(drawing)

    def side(split: str, count: int | None) -> PartDrawings:
        chosen = [d for key, own in members.items() if key[0] == split for d in own[:count]]
        return _drawn(chosen, categories_of(classes))

    if limit is not None:
        return side("train", 2), side("val", 2)
    return side("train", fitted), side("val", None)


def last_of_each(labels: Tensor) -> Tensor:
    """The last five items of every class, at most a third of it: Boolean ``[N]``."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        own = (labels == label).nonzero()[:, 0]
        count = min(HELD_OUT_DRAWINGS, len(own) // 3)
        held[own[len(own) - count :]] = True
    return held


def _drawn(drawings: list[Drawing], category: Tensor) -> PartDrawings:
    pictures = [draw(drawing, SIZE, STROKE_WIDTH) for drawing in drawings]
    points = LabelledPoints(
        tuple(drawing.name for drawing in drawings),
        torch.from_numpy(np.concatenate([points for _, _, points in pictures])),
        torch.from_numpy(np.concatenate([drawing.stroke for drawing in drawings])),
        torch.from_numpy(np.concatenate([drawing.label for drawing in drawings])),
        torch.tensor([0, *np.cumsum([len(drawing.label) for drawing in drawings])]),
    )
    pixels = torch.from_numpy(np.stack([image[None, ..., 0] for image, _, _ in pictures]))
    return PartDrawings(pixels, points, category)
