"""Query segmentation: the part of a photo that a sketch denotes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from sketchfusion_plugins.data.layout import IGNORED
from sketchfusion_plugins.data.task_data import labelled_mask
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.heads.query import Pooling, QuerySegmentationHead, ink_cells
from sketchfusion_plugins.losses.query import QueryLossConfig, query_segmentation_loss
from sketchfusion_plugins.metrics.query_segmentation import fit_threshold
from sketchfusion_plugins.tasks.base import Task


class QuerySegmentation(Task):
    """A sketch's pooled descriptor held against every cell of a photo's map.

    Args:
        encoder: Encoder that aggregates to one map.
        pooling: ``"ink"`` averages the cells of the sketch's map that strokes run through;
            ``"all"`` the whole map, as the paper does, where paper outweighs what is drawn.
        loss: Options of `sketchfusion_plugins.losses.query.QueryLossConfig`: weights of binary
            cross entropy and Dice, and Dice's smoothing.

    Raises:
        ValueError: No single map, an unknown pooling, or an option is out of range.
    """

    name = "query_segmentation"
    most_fitted = 256
    part_suffices = True

    def __init__(
        self,
        encoder: SketchFusionEncoder,
        pooling: Pooling = "ink",
        loss: Mapping[str, Any] | None = None,
    ) -> None:
        options = {} if loss is None else {"loss": dict(loss)}
        super().__init__(encoder, {"pooling": pooling, **options})
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be one of {get_args(Pooling)}, got {pooling!r}.")
        self.loss_config = QueryLossConfig(**(loss or {}))
        if self.loss_config.ignore_index != IGNORED:
            raise ValueError(
                f"the task's data mark what is not judged with {IGNORED}, got ignore_index "
                f"{self.loss_config.ignore_index}. Leave it out."
            )
        self.head = QuerySegmentationHead(pooling)

    def forward(self, sketch: Tensor, photo: Tensor) -> Tensor:
        """Logits of a photo's pixels, above 0 where the sketch's object is.

        Args:
            sketch: ``[B, 3, h, w]`` in -1..1, on white.
            photo: ``[B, 3, H, W]`` in -1..1.

        Returns:
            ``[B, H, W]``.
        """
        if sketch.shape == photo.shape:
            both, count = self.features(torch.cat([sketch, photo])), sketch.shape[0]
            # Not chunk, of which an exported program cannot vary the batch.
            sketch_map, photo_map = both[:count], both[count:]
        else:
            sketch_map, photo_map = self.features(sketch), self.features(photo)
        ink = None
        if self.head.pooling == "ink":
            cells = (sketch_map.shape[-2], sketch_map.shape[-1])
            ink = ink_cells(sketch, cells, self.features.cell_size(sketch, sketch_map))
        size = (photo.shape[-2], photo.shape[-1])
        stride = self.features.cell_size(photo, photo_map)
        logits: Tensor = self.head(sketch_map, photo_map, size, ink=ink, photo_stride=stride)
        return logits

    @torch.no_grad()
    def fit_head(self, batches: Iterable[Mapping[str, Any]]) -> bool:
        """Put the threshold where the foreground's IoU is best, as for features without a head.

        Cross entropy puts it where a pixel is foreground more often than not, and where little of a
        photo is, that is nearly nowhere. The present one is tried too.
        """
        mode = self.training
        self.eval()
        scale, threshold = self.head.log_scale.exp(), self.head.threshold
        pairs = [
            (self(batch["sketch"], batch["photo"]) / scale + threshold, labelled_mask(batch))
            for batch in batches
        ]
        threshold.fill_(fit_threshold(pairs, also=[float(threshold)]))
        self.train(mode)
        return True

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Losses of ``sketch``, ``photo`` and ``mask``; see `labelled_mask`."""
        logits = self(batch["sketch"], batch["photo"])
        return query_segmentation_loss(logits, labelled_mask(batch), self.loss_config)
