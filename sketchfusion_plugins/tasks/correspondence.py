"""Correspondence: where a sketch's points lie in a photo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.heads.matching import match_points
from sketchfusion_plugins.losses.correspondence import (
    CorrespondenceLoss,
    CorrespondenceLossConfig,
)
from sketchfusion_plugins.tasks.base import Task


class Correspondence(Task):
    """Points of one image found in another by the similarity of the encoder's maps.

    There is no head: injection and aggregation are all that trains.

    Args:
        encoder: Encoder that aggregates to one map.
        loss: Options of `sketchfusion_plugins.losses.correspondence.CorrespondenceLossConfig`; by
            default end-point error and contrastive loss, as in the released code's parent.

    Raises:
        ValueError: No single map, or an option is out of range.
    """

    name = "correspondence"

    def __init__(self, encoder: SketchFusionEncoder, loss: Mapping[str, Any] | None = None) -> None:
        options = {"contrastive": 1.0} if loss is None else dict(loss)
        super().__init__(encoder, {"loss": options})
        self.criterion = CorrespondenceLoss(CorrespondenceLossConfig(**options))

    def forward(self, source: Tensor, target: Tensor, points: Tensor, **options: Any) -> Tensor:
        """Where points of the sources lie in the targets.

        Args:
            source: ``[B, 3, H, W]`` in -1..1.
            target: ``[B, 3, H2, W2]`` in -1..1.
            points: ``[B, N, 2]`` in pixels of the sources.
            options: See `sketchfusion_plugins.heads.matching.match_points`.

        Returns:
            ``[B, N, 2]`` in pixels of the targets.

        Raises:
            ModuleNotFoundError: kornia is not installed.
            ValueError: Shapes do not fit, or an option is out of range.
        """
        source_map, target_map = self._maps(source, target)
        return match_points(
            source_map,
            target_map,
            points,
            source_stride=self.features.cell_size(source, source_map),
            target_stride=self.features.cell_size(target, target_map),
            **options,
        )

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Losses of ``source``, ``target``, their ``*_points`` [B, N, 2] and ``visible`` [B, N].

        Raises:
            ModuleNotFoundError: There is an end-point error, and kornia is not installed.
        """
        source_map, target_map = self._maps(batch["source"], batch["target"])
        losses: dict[str, Tensor] = self.criterion(
            source_map,
            target_map,
            batch["source_points"],
            batch["target_points"],
            source_stride=self.features.cell_size(batch["source"], source_map),
            target_stride=self.features.cell_size(batch["target"], target_map),
            visible=batch["visible"],
        )
        return losses

    def _maps(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if source.shape != target.shape:
            return self.features(source), self.features(target)
        both, count = self.features(torch.cat([source, target])), source.shape[0]
        # Not chunk, of which an exported program cannot vary the batch.
        return both[:count], both[count:]
