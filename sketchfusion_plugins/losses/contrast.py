"""Losses that draw sketches to their photos: triplet and InfoNCE, across domains only.

Sketches are compared with photos and never with other sketches, in both directions: a sketch among
photos and a photo among sketches. Labels say what belongs together: classes for category-level
retrieval, instances for fine-grained. Maths by pytorch-metric-learning. Where several processes
train, `gathering.of_all_processes` makes one batch of theirs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# CLIP's bounds (Radford et al. 2021): logits are scaled by 1 / temperature, never more than 100.
INITIAL_TEMPERATURE = 0.07
LARGEST_SCALE = 100.0


class CrossDomainTriplet(nn.Module):
    """Triplet loss over all triplets of a batch, on cosine similarity.

    A triplet costs ``max(0, margin + similarity to the negative - similarity to the positive)``;
    the mean is over triplets that cost something (Hermans et al. 2017, "batch all", non-zero mean),
    so its value need not fall while their number does.

    Args:
        margin: By how much a positive must be more similar, 0..2.

    Raises:
        ValueError: A margin out of range.
    """

    def __init__(self, margin: float = 0.2) -> None:
        super().__init__()
        if not 0 < margin <= 2:
            raise ValueError(f"expected a margin above 0 and up to 2, got {margin}.")
        self.margin = margin

    def forward(
        self,
        sketches: Tensor,
        photos: Tensor,
        sketch_labels: Tensor,
        photo_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss of a batch; see `CrossDomainInfoNCE.forward`."""
        photo_labels = _check_batch(sketches, photos, sketch_labels, photo_labels)
        distances, losses, _ = _require_metric_learning()
        loss = losses.TripletMarginLoss(margin=self.margin, distance=distances.CosineSimilarity())
        forth, back = _both_ways(loss, sketches, photos, sketch_labels, photo_labels, 1.0)
        return (forth + back) / 2


class CrossDomainInfoNCE(nn.Module):
    """InfoNCE with a learned temperature, symmetric as in CLIP.

    With one positive per anchor this is CLIP's loss. With several, such as all photos of a class,
    it is the mean over positives of their log probabilities among the whole batch (supervised
    contrastive loss, Khosla et al. 2020, L_out). Anchors without positive do not count; those that
    are told apart perfectly do.

    Args:
        temperature: Initial temperature; at least 0.01.
        learn_temperature: Train the temperature, which then stays at 0.01 or above. Leave it out of
            weight decay.

    Raises:
        ValueError: A temperature out of range.
    """

    def __init__(
        self, temperature: float = INITIAL_TEMPERATURE, learn_temperature: bool = True
    ) -> None:
        super().__init__()
        if not temperature >= 1 / LARGEST_SCALE:
            raise ValueError(f"expected a temperature of at least 0.01, got {temperature}.")
        scale = torch.tensor(-math.log(temperature))
        self.log_scale = nn.Parameter(scale, requires_grad=learn_temperature)

    @property
    def temperature(self) -> float:
        """Present temperature."""
        return math.exp(-float(self.log_scale.detach()))

    def forward(
        self,
        sketches: Tensor,
        photos: Tensor,
        sketch_labels: Tensor,
        photo_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            sketches: Embeddings ``[S, D]`` of any length; cosine similarity is used.
            photos: Embeddings ``[P, D]``.
            sketch_labels: Classes or instances ``[S]``.
            photo_labels: The same, ``[P]``; None where photos come in the sketches' order.

        Returns:
            float32 scalar; 0 without any positive or without any negative, or with one of each
            alone, as pytorch-metric-learning has it.

        Raises:
            ValueError: Shapes that do not fit.
            ImportError: pytorch-metric-learning is not installed.
        """
        photo_labels = _check_batch(sketches, photos, sketch_labels, photo_labels)
        with torch.no_grad():
            # Clamping the value used instead would leave the parameter without gradient beyond it.
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))
        scale = self.log_scale.float().exp()
        distances, losses, reducers = _require_metric_learning()
        # NTXentLoss, the library's other InfoNCE, adds 1e-7 inside its logarithm, which silences
        # the hardest pairs at low temperatures. Sketches come scaled, so the scale here is 1. The
        # library's own mean is over losses above 0, which leaves out what has been learned.
        loss = losses.SupConLoss(
            temperature=1.0,
            distance=distances.DotProductSimilarity(normalize_embeddings=False),
            reducer=reducers.MeanReducer(),
        )
        forth, back = _both_ways(loss, sketches, photos, sketch_labels, photo_labels, scale)
        same = sketch_labels[:, None] == photo_labels
        return (forth / _share_with_positive(same) + back / _share_with_positive(same.T)) / 2


def _require_metric_learning() -> tuple[Any, Any, Any]:
    """Modules of pytorch-metric-learning, which embedding alone does not need."""
    try:
        from pytorch_metric_learning import distances, losses, reducers
    except ImportError as error:
        raise ImportError(
            "pytorch-metric-learning is needed to train retrieval: "
            'pip install "sketchfusion-plugins[tasks]"'
        ) from error
    return distances, losses, reducers


def _both_ways(
    loss: nn.Module,
    sketches: Tensor,
    photos: Tensor,
    sketch_labels: Tensor,
    photo_labels: Tensor,
    scale: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """Both directions in float32; one side is scaled after normalisation."""
    with torch.autocast(sketches.device.type, enabled=False):
        sketches = F.normalize(sketches.float(), dim=1) * scale
        photos = F.normalize(photos.float(), dim=1)
        forth: Tensor = loss(sketches, sketch_labels, ref_emb=photos, ref_labels=photo_labels)
        back: Tensor = loss(photos, photo_labels, ref_emb=sketches, ref_labels=sketch_labels)
        return forth, back


def _share_with_positive(same: Tensor) -> Tensor:
    """Share of the anchors, rows of ``same``, that have a positive; not 0."""
    return same.any(1).float().mean().clamp(min=1 / len(same))


def _check_batch(
    sketches: Tensor, photos: Tensor, sketch_labels: Tensor, photo_labels: Tensor | None
) -> Tensor:
    """Labels of the photos, once everything fits."""
    if sketches.ndim != 2 or photos.ndim != 2 or sketches.shape[1] != photos.shape[1]:
        raise ValueError(
            f"expected sketches [S, D] and photos [P, D], got {list(sketches.shape)} and "
            f"{list(photos.shape)}."
        )
    if photo_labels is None:
        photo_labels = sketch_labels
    if sketch_labels.shape != sketches.shape[:1] or photo_labels.shape != photos.shape[:1]:
        raise ValueError(
            f"expected labels [{len(sketches)}] of sketches and [{len(photos)}] of photos, got "
            f"{list(sketch_labels.shape)} and {list(photo_labels.shape)}."
        )
    # The library takes labels that are the same object for a batch compared with itself, and drops
    # the pairs of equal index: exactly the positives here.
    return photo_labels.clone()
