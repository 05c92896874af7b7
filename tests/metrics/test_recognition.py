"""Recognition measures against hand calculation and torchmetrics."""

from __future__ import annotations

import pytest
import torch

from sketchfusion_plugins.metrics.recognition import mean_class_accuracy, top_k_correct


def test_by_hand_with_ties() -> None:
    logits = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 0.1], [0.5, 0.5, 0.1], [3.0, 2.0, 1.0]])
    labels = torch.tensor([1, 0, 1, 2])
    assert top_k_correct(logits, labels).tolist() == [True, True, False, False]
    assert top_k_correct(logits, labels, 2).tolist() == [True, True, True, False]
    assert top_k_correct(logits, labels, 3).tolist() == [True] * 4
    assert torch.equal(top_k_correct(logits, labels), logits.argmax(1) == labels)


def test_constant_logits_are_worth_the_first_class_alone() -> None:
    labels = torch.arange(10)
    assert top_k_correct(torch.zeros(10, 10), labels, 5).tolist() == [True] * 5 + [False] * 5


def test_mean_over_classes_by_hand() -> None:
    correct = torch.tensor([True, True, False, True, False])
    labels = torch.tensor([4, 4, 4, 9, 9])
    assert mean_class_accuracy(correct, labels) == pytest.approx((2 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize("k", [1, 5])
def test_torchmetrics_agrees(k: int) -> None:
    classification = pytest.importorskip("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(211, 13, generator=generator)
    labels = torch.randint(13, (211,), generator=generator)
    correct = top_k_correct(logits, labels, k)
    options = {"num_classes": 13, "top_k": k}
    micro = classification.multiclass_accuracy(logits, labels, average="micro", **options)
    macro = classification.multiclass_accuracy(logits, labels, average="macro", **options)
    assert correct.double().mean() == pytest.approx(float(micro), abs=1e-6)
    assert mean_class_accuracy(correct, labels) == pytest.approx(float(macro), abs=1e-6)


def test_torchmetrics_counts_classes_that_are_only_predicted() -> None:
    # A class without items gets accuracy 0 there as soon as it is predicted once.
    classification = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = torch.eye(3)[[0, 2]], torch.tensor([0, 1])
    theirs = classification.multiclass_accuracy(logits, labels, num_classes=3, average="macro")
    assert float(theirs) == pytest.approx(1 / 3)
    assert mean_class_accuracy(top_k_correct(logits, labels), labels) == 1 / 2


@pytest.mark.parametrize(
    ("logits", "labels", "k", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), 1, r"\[2, 3\] and \[3\]"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), 1, "at least one item"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), 1, "labels of 0 to 2, got 0 to 3"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), 1, "got -1 to 0"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), 5, "k of 1 to 3"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), 0, "k of 1 to 3"),
        (torch.full((2, 3), torch.nan), torch.tensor([0, 1]), 1, "NaN"),
    ],
)
def test_bad_input(logits: torch.Tensor, labels: torch.Tensor, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        top_k_correct(logits, labels, k)


def test_bad_classes() -> None:
    with pytest.raises(ValueError, match=r"\[2\] and \[3\]"):
        mean_class_accuracy(torch.ones(2, dtype=torch.bool), torch.zeros(3))
