"""Loss of sketch-query segmentation: binary cross entropy and soft Dice on labelled pixels.

Dice is Milletari et al., "V-Net" (3DV 2016), without squares in the denominator. Both are
computed per query and averaged over the queries that have a labelled pixel, so that small photos
count as much as large ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class QueryLossConfig:
    """What to train sketch-query segmentation with.

    Args:
        bce: Weight of binary cross entropy.
        dice: Weight of Dice.
        smooth: Added to Dice's numerator and denominator, in pixels: a mask without foreground
            costs nothing once nothing is predicted.
        ignore_index: Label of pixels that do not count.
    """

    bce: float = 1.0
    dice: float = 1.0
    smooth: float = 1.0
    ignore_index: int = 255

    def __post_init__(self) -> None:
        for name in ("bce", "dice"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be 0 or more and finite, got {value}.")
        if self.bce == self.dice == 0:
            raise ValueError("bce and dice are both 0: give one a weight.")
        if not self.smooth > 0:
            raise ValueError(f"smooth must be above 0 px, got {self.smooth}.")
        if self.ignore_index in (0, 1):
            raise ValueError(f"ignore_index must differ from 0 and 1, got {self.ignore_index}.")


def query_segmentation_loss(
    logits: Tensor, masks: Tensor, config: QueryLossConfig | None = None
) -> dict[str, Tensor]:
    """Losses of a batch of queries.

    Args:
        logits: ``[B, H, W]``, foreground above 0.
        masks: 1 for foreground, 0 for background or the ignored label, integers ``[B, H, W]``.
        config: Weights and options.

    Returns:
        Weighted scalars ``loss_bce`` and ``loss_dice``, those whose weight is not 0. They are 0
        where no pixel is labelled.

    Raises:
        ValueError: Shapes do not fit, or a mask holds other labels.
    """
    config = QueryLossConfig() if config is None else config
    if logits.ndim != 3 or masks.shape != logits.shape:
        raise ValueError(
            f"expected logits and masks [B, H, W], got {list(logits.shape)} and "
            f"{list(masks.shape)}."
        )
    labelled = masks != config.ignore_index
    foreground = masks == 1
    if not torch.compiler.is_compiling():
        wrong = masks[labelled & ~foreground & (masks != 0)]
        if len(wrong):
            raise ValueError(
                f"expected labels 0, 1 and {config.ignore_index}, got {int(wrong[0])}. Turn the "
                "class that is asked for into 1 and the others into 0."
            )
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # Ignored pixels may hold anything, infinite logits included.
        logits = torch.where(labelled, logits, 0.0)
        truth = foreground.to(logits.dtype)
        count = labelled.sum((1, 2))
        losses = {}
        if config.bce:
            entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            per_query = torch.where(labelled, entropy, 0.0).sum((1, 2)) / count.clamp(min=1)
            losses["loss_bce"] = config.bce * _mean_over_queries(per_query, count)
        if config.dice:
            probability = torch.where(labelled, logits.sigmoid(), 0.0)
            overlap = 2 * (probability * truth).sum((1, 2)) + config.smooth
            total = probability.sum((1, 2)) + truth.sum((1, 2)) + config.smooth
            losses["loss_dice"] = config.dice * _mean_over_queries(1 - overlap / total, count)
    return losses


def _mean_over_queries(values: Tensor, count: Tensor) -> Tensor:
    counted = count > 0
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)
