"""How well photos are segmented by sketch queries.

The paper reports mIoU and pixel accuracy and does not define them further. Two readings of mIoU
are common and both are given: ``foreground_iou``, the mean over queries of the foreground's IoU,
and ``mean_iou``, the mean over queries of the average of foreground's and background's IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Quantiles of the foreground's similarities, and as many of the background's.
QUANTILES = 64


@dataclass(frozen=True)
class QuerySegmentationScores:
    """Pixel counts of a number of queries, which add up.

    Properties hold one value per query with a labelled pixel, float64 in 0..1. A class that is
    neither there nor predicted has an IoU of 1: nothing was to be found, and nothing was.

    Attributes:
        true_positive: Foreground pixels that were found, integers ``[queries]``.
        false_positive: Background pixels taken for foreground, integers ``[queries]``.
        false_negative: Foreground pixels that were missed, integers ``[queries]``.
        true_negative: Background pixels left alone, integers ``[queries]``.
    """

    true_positive: Tensor
    false_positive: Tensor
    false_negative: Tensor
    true_negative: Tensor

    def __add__(self, other: QuerySegmentationScores) -> QuerySegmentationScores:
        return QuerySegmentationScores(
            torch.cat([self.true_positive, other.true_positive]),
            torch.cat([self.false_positive, other.false_positive]),
            torch.cat([self.false_negative, other.false_negative]),
            torch.cat([self.true_negative, other.true_negative]),
        )

    @property
    def counted(self) -> Tensor:
        """Queries with a labelled pixel, bool ``[queries]``."""
        return self._labelled > 0

    @property
    def excluded(self) -> int:
        """Queries without a labelled pixel, which no mean counts."""
        return int((~self.counted).sum())

    @property
    def foreground_iou(self) -> Tensor:
        """IoU of the foreground, ``[queries]``."""
        return self._iou(self.true_positive)

    @property
    def background_iou(self) -> Tensor:
        """IoU of the background, ``[queries]``."""
        return self._iou(self.true_negative)

    @property
    def mean_iou(self) -> Tensor:
        """Average of the foreground's and the background's IoU, ``[queries]``."""
        return (self.foreground_iou + self.background_iou) / 2

    @property
    def pixel_accuracy(self) -> Tensor:
        """Share of labelled pixels that are right, ``[queries]``."""
        right = self.true_positive + self.true_negative
        return (right.double() / self._labelled)[self.counted]

    def summary(self) -> dict[str, float]:
        """Means over queries, 0..1; NaN without queries."""
        names = ("foreground_iou", "mean_iou", "pixel_accuracy")
        return {name: float(getattr(self, name).mean()) for name in names}

    @property
    def _labelled(self) -> Tensor:
        return self.true_positive + self.false_positive + self.false_negative + self.true_negative

    def _iou(self, intersection: Tensor) -> Tensor:
        union = intersection + self.false_positive + self.false_negative
        iou = torch.where(union > 0, intersection.double() / union, 1.0)
        return iou[self.counted]


def query_segmentation_scores(
    predicted: Tensor, masks: Tensor, ignore_index: int = 255
) -> QuerySegmentationScores:
    """Count right and wrong pixels of every query.

    Args:
        predicted: Which pixels are foreground, bool ``[B, H, W]``.
        masks: 1 for foreground, 0 for background or the ignored label, integers ``[B, H, W]``.
        ignore_index: Label of pixels that do not count.

    Raises:
        TypeError: ``predicted`` is not boolean.
        ValueError: Shapes do not fit, or a mask holds other labels.
    """
    if predicted.dtype != torch.bool:
        raise TypeError(
            f"expected predicted pixels as bool, got {predicted.dtype}. Take logits > 0."
        )
    masks = masks.to(predicted.device)
    foreground, background = _sides("predicted pixels", predicted, masks, ignore_index)

    def count(pixels: Tensor) -> Tensor:
        return pixels.sum((1, 2)).cpu()

    return QuerySegmentationScores(
        count(predicted & foreground),
        count(predicted & background),
        count(~predicted & foreground),
        count(~predicted & background),
    )


def fit_threshold(pairs: Sequence[tuple[Tensor, Tensor]], also: Sequence[float] = ()) -> float:
    """Threshold of similarity with the best mean foreground IoU.

    Those tried lie between quantiles of the foreground's and of the background's similarities:
    quantiles of all pixels would miss the foreground where little of a photo is.

    Args:
        pairs: Similarities and masks, ``[B, H, W]`` each, see `query_segmentation_scores`.
        also: Thresholds to try beside them.

    Raises:
        ValueError: There are none, shapes do not fit, a mask holds other labels, no pixel is
            labelled, or a similarity is NaN.
    """
    if not pairs:
        raise ValueError("a threshold is fitted to at least one pair, got none.")
    labelled = []
    for similarity, masks in pairs:
        similarity, masks = similarity.float().cpu(), masks.cpu()
        refuse_nan(similarity)
        labelled.append((similarity, *_sides("similarities", similarity, masks, 255)))
    found = [torch.cat([part[0][part[side]] for part in labelled]).numpy() for side in (1, 2)]
    steps = np.linspace(0, 1, QUANTILES)
    values = np.unique([np.quantile(side, steps) for side in found if len(side)])
    if not len(values):
        raise ValueError("no pixel is labelled 0 or 1; a threshold is fitted to those that are.")
    between = (values[:-1] + values[1:]) / 2
    candidates = np.unique(np.concatenate([values[:1], between, values[-1:], list(also)]))
    thresholds = torch.from_numpy(candidates).float()
    scores = torch.cat([_foreground_ious(*part, thresholds) for part in labelled])
    return float(candidates[int(scores.mean(0).argmax())])


def refuse_nan(values: Tensor) -> None:
    """Refuse logits or similarities that are NaN, which no threshold tells from background.

    Raises:
        ValueError: One is.
    """
    if bool(values.isnan().any()):
        raise ValueError(
            f"{int(values.isnan().sum())} of {values.numel()} pixels are NaN: the model's weights "
            "are damaged, or its training has diverged."
        )


def _sides(name: str, values: Tensor, masks: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Foreground and background of masks, bool ``[B, H, W]``, after a check of their labels."""
    if values.ndim != 3 or masks.shape != values.shape:
        raise ValueError(
            f"expected {name} and masks [B, H, W], got {list(values.shape)} and "
            f"{list(masks.shape)}."
        )
    foreground, background = masks == 1, masks == 0
    wrong = masks[~foreground & ~background & (masks != ignore_index)]
    if len(wrong):
        raise ValueError(
            f"expected labels 0, 1 and {ignore_index}, got {int(wrong[0])}. Turn the class that "
            "is asked for into 1 and the others into 0."
        )
    return foreground, background


def _foreground_ious(
    similarity: Tensor, foreground: Tensor, background: Tensor, thresholds: Tensor
) -> Tensor:
    """IoU ``[labelled queries, T]`` of the foreground at every threshold, increasing ``[T]``.

    One pass over the pixels, whatever the number of thresholds.
    """
    queries, width = len(similarity), len(thresholds) + 1
    # How many thresholds a pixel exceeds, beside those of the queries before.
    exceeded = torch.bucketize(similarity, thresholds)
    exceeded += width * torch.arange(queries)[:, None, None]

    def above(side: Tensor) -> Tensor:
        counts = exceeded[side].bincount(minlength=queries * width).view(queries, width)
        return counts.flip(1).cumsum(1).flip(1)

    right, wrong = above(foreground), above(background)
    union = (right[:, :1] + wrong)[:, 1:]
    iou = torch.where(union > 0, right[:, 1:].double() / union, 1.0)
    return iou[right[:, 0] + wrong[:, 0] > 0]
