"""Stroke metrics, counted by hand."""

from __future__ import annotations

import math

import torch

from sketchfusion_plugins.stroke_metrics import (
    LabelledPoints,
    Tally,
    categories_of,
    labels_at,
    majority_baseline,
    tally,
)


def test_tally_by_hand() -> None:
    label = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])
    predicted = torch.tensor([0, 0, 0, 9, 1, 1, 9, 9, 2])
    stroke = torch.tensor([0, 0, 0, 0, 3, 3, 3, 3, 7])
    # Stroke 0 has 3 of 4 right, just enough; stroke 3 has 2 of 4; stroke 7 has 1 of 1.
    result = tally(predicted, label, stroke)
    assert result == Tally(6, 9, 2, 3)
    assert result.point_accuracy == 6 / 9
    assert result.stroke_accuracy == 2 / 3
    assert result + Tally(1, 1, 0, 1) == Tally(7, 10, 2, 4)
    assert math.isnan(Tally().point_accuracy)
    assert math.isnan(Tally().stroke_accuracy)


def test_labels_at() -> None:
    labels = torch.arange(12).reshape(3, 4)
    xy = torch.tensor([[0.0, 0.0], [1.99, 1.0], [3.5, 2.5], [-1.0, 9.0], [4.0, 0.2]])
    assert labels_at(labels, xy).tolist() == [0, 5, 11, 8, 3]


def points(labels: list[list[int]]) -> LabelledPoints:
    flat = [label for drawing in labels for label in drawing]
    offset = [0]
    for drawing in labels:
        offset.append(offset[-1] + len(drawing))
    return LabelledPoints(
        tuple(str(index) for index in range(len(labels))),
        torch.zeros(len(flat), 2),
        # Here every label is a stroke of its own.
        torch.tensor(flat),
        torch.tensor(flat),
        torch.tensor(offset),
    )


def test_majority_baseline_by_hand() -> None:
    classes = ["ant: head", "ant: legs", "pig: ear", "pig: body", "pig: tail"]
    group = categories_of(classes)
    assert group.tolist() == [0, 0, 1, 1, 1]
    train = points([[0, 1, 1], [0, 0], [3, 3, 2, 4]])
    test = points([[0, 0, 1], [2, 3, 3, 3, 4]])
    # Ants are heads (3 of 5 points), pigs bodies.
    assert majority_baseline(train, test, group) == Tally(5, 8, 2, 5)
