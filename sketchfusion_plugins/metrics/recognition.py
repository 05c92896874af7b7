"""Recognition: Acc@k and the mean of the classes' accuracies."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k_correct(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Whether the right class is among the k best; the mean over items is Acc@k.

    Of equal logits the class of lower index comes first, as with ``argmax``.

    Args:
        logits: ``[N, C]``.
        labels: Class indices ``[N]``, 0..C-1.
        k: Classes to look at, 1..C.

    Returns:
        Boolean ``[N]``.

    Raises:
        ValueError: Shapes that do not fit, labels or k out of range, or NaN.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"expected logits [N, C] and labels [N] of at least one item, got {list(logits.shape)} "
            f"and {list(labels.shape)}."
        )
    classes = logits.shape[1]
    if not 1 <= k <= classes:
        raise ValueError(f"expected k of 1 to {classes}, the number of classes, got {k}.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"expected labels of 0 to {classes - 1}, got {low} to {high}.")
    if logits.isnan().any():
        raise ValueError("the logits hold NaN. Check the training for a loss that diverged.")
    own = logits.gather(1, labels[:, None])
    before = torch.arange(classes, device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & before)).sum(1) < k


def mean_class_accuracy(correct: Tensor, labels: Tensor) -> float:
    """Mean over classes of the share of a class's items that are right.

    Classes without an item count nowhere; an accuracy of theirs does not exist.

    Args:
        correct: Boolean ``[N]``, as `top_k_correct` gives it.
        labels: Classes ``[N]``.

    Raises:
        ValueError: Shapes that do not fit, or no item.
    """
    if correct.ndim != 1 or correct.shape != labels.shape or not len(labels):
        raise ValueError(
            f"expected [N] and [N] of at least one item, got {list(correct.shape)} and "
            f"{list(labels.shape)}."
        )
    correct, labels = correct.cpu(), labels.cpu()  # Apple's mps has no float64
    _, group, counts = labels.unique(return_inverse=True, return_counts=True)
    right = torch.zeros(len(counts), dtype=torch.float64, device=correct.device)
    return float((right.index_add(0, group, correct.double()) / counts).mean())
