"""Accuracy of part labels on strokes, as the literature on sketch segmentation reports it.

P-metric: share of points whose label is right. C-metric: share of components, here strokes, of
whose points at least 75 % are right. Both are from Huang, Fu and Lau, "Data-driven Segmentation and
Labeling of Freehand Sketches" (SIGGRAPH Asia 2014), where they count pixels and components.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

COMPONENT_SHARE = 0.75


@dataclass(frozen=True)
class LabelledPoints:
    """Points of many drawings; drawing i is the rows ``offset[i]:offset[i + 1]``.

    Attributes:
        names: Names of the D drawings.
        xy: ``[N, 2]`` in pixels.
        stroke: Stroke of every point within its drawing, ``[N]``.
        label: Class index of every point, ``[N]``.
        offset: ``[D + 1]``.
        size: Side of the square pictures that the points lie on; None if it is not known.
    """

    names: tuple[str, ...]
    xy: Tensor
    stroke: Tensor
    label: Tensor
    offset: Tensor
    size: int | None = None

    def rows(self, index: int) -> slice:
        """Rows of a drawing."""
        return slice(int(self.offset[index]), int(self.offset[index + 1]))


@dataclass(frozen=True)
class Tally:
    """Counts of one or more drawings, which add up."""

    points_right: int = 0
    points: int = 0
    strokes_right: int = 0
    strokes: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.points_right + other.points_right,
            self.points + other.points,
            self.strokes_right + other.strokes_right,
            self.strokes + other.strokes,
        )

    @property
    def point_accuracy(self) -> float:
        """P-metric, 0..1; NaN without points."""
        return self.points_right / self.points if self.points else float("nan")

    @property
    def stroke_accuracy(self) -> float:
        """C-metric, 0..1; NaN without strokes."""
        return self.strokes_right / self.strokes if self.strokes else float("nan")


def read_points(path: str | Path) -> LabelledPoints:
    """Read what `sketchfusion_plugins.data.spg.write_spg` wrote.

    Raises:
        FileNotFoundError: No such file.
    """
    from safetensors import safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; it is written with the SPG data set, beside images/."
        )
    with safe_open(path, framework="pt") as file:
        names = json.loads(file.metadata()["names"])
        tensors = {key: file.get_tensor(key) for key in ("xy", "stroke", "label", "offset")}
        # Files of before do not say.
        size = int(file.get_tensor("size")) if "size" in file.keys() else None  # noqa: SIM118
    return LabelledPoints(tuple(names), **tensors, size=size)


def labels_at(labels: Tensor, xy: Tensor) -> Tensor:
    """Labels of the pixels that points lie in.

    Args:
        labels: ``[H, W]``.
        xy: ``[N, 2]`` in pixels; points outside take the nearest pixel.

    Returns:
        ``[N]``.
    """
    height, width = labels.shape
    columns = xy[:, 0].floor().long().clamp(0, width - 1)
    rows = xy[:, 1].floor().long().clamp(0, height - 1)
    return labels[rows.to(labels.device), columns.to(labels.device)]


def tally(predicted: Tensor, label: Tensor, stroke: Tensor) -> Tally:
    """Count what is right in one drawing.

    Args:
        predicted: Predicted label of every point, ``[N]``.
        label: True label of every point, ``[N]``.
        stroke: Stroke of every point, ``[N]``.
    """
    right = (predicted.cpu() == label).float()
    _, index = stroke.unique(return_inverse=True)
    counts = torch.bincount(index)
    shares = torch.bincount(index, right) / counts
    return Tally(int(right.sum()), len(right), int((shares >= COMPONENT_SHARE).sum()), len(counts))


def majority_baseline(train: LabelledPoints, test: LabelledPoints, group: Tensor) -> Tally:
    """Learning-free baseline: every point gets its category's most frequent label.

    Args:
        train: Points that labels are counted on.
        test: Points that are judged.
        group: Category of every class index, ``[classes]``.
    """
    counts = torch.bincount(train.label, minlength=len(group))
    majority = torch.stack(
        [counts.where(group == group[label], -1).argmax() for label in range(len(group))]
    )
    total = Tally()
    for index in range(len(test.names)):
        rows = test.rows(index)
        label = test.label[rows]
        total += tally(majority[label], label, test.stroke[rows])
    return total


def categories_of(classes: list[str] | tuple[str, ...], separator: str = ": ") -> Tensor:
    """Category of every class named ``"category: part"``, as indices ``[classes]``."""
    names = [name.partition(separator)[0] for name in classes]
    order = list(dict.fromkeys(names))
    return torch.tensor([order.index(name) for name in names])
