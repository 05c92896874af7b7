"""Retrieval: photos that a sketch asks for, by category or the very instance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.heads.embedding import EmbeddingHead
from sketchfusion_plugins.losses.contrast import CrossDomainInfoNCE, CrossDomainTriplet
from sketchfusion_plugins.losses.gathering import of_all_processes
from sketchfusion_plugins.tasks.base import Task


class Retrieval(Task):
    """Unit embeddings of sketches and photos in one space.

    Args:
        encoder: Encoder that aggregates to one map.
        dim: Length of an embedding.
        grid: Parts along each axis that the map is pooled to before the projection.
        loss: ``"contrast"`` (InfoNCE) or ``"triplet"``.
        by: What makes a photo right for a sketch: the same ``"instance"`` or ``"category"``.

    Raises:
        ValueError: No single map, or an unknown option.
    """

    name = "retrieval"
    # A pair is told apart from the batch's others.
    least_batch = 2

    def __init__(
        self,
        encoder: SketchFusionEncoder,
        dim: int = 256,
        grid: int = 4,
        loss: str = "contrast",
        by: str = "instance",
    ) -> None:
        super().__init__(encoder, {"dim": dim, "grid": grid, "loss": loss, "by": by})
        if by not in ("instance", "category"):
            raise ValueError(f"by must be 'instance' or 'category', got {by!r}.")
        self.by = by
        self.head = EmbeddingHead(self.features.channels, dim, grid)
        self.criterion: nn.Module
        if loss == "contrast":
            self.criterion = CrossDomainInfoNCE()
        elif loss == "triplet":
            self.criterion = CrossDomainTriplet()
        else:
            raise ValueError(f"loss must be 'contrast' or 'triplet', got {loss!r}.")

    def forward(self, image: Tensor) -> Tensor:
        """Embeddings ``[B, dim]`` of unit length, of images ``[B, 3, H, W]`` in -1..1."""
        embedding: Tensor = self.head(self.features(image))
        return embedding

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Loss of ``sketch`` and ``photo`` [B, 3, H, W] with ``instance`` and ``label`` [B].

        Under data parallelism a pair is told apart from those of all processes.
        """
        sketch, photo = self(torch.cat([batch["sketch"], batch["photo"]])).chunk(2)
        labels = batch["instance" if self.by == "instance" else "label"]
        # Half precision is not sent by every backend.
        sketch, photo, labels = (
            of_all_processes(rows) for rows in (sketch.float(), photo.float(), labels)
        )
        return {"loss": self.criterion(sketch, photo, labels)}
