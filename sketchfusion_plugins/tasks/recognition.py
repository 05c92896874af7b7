"""Recognition: which class a sketch is of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.heads.embedding import ClassifierHead
from sketchfusion_plugins.tasks.base import Task


class Recognition(Task):
    """Classifier on the pooled map, trained with cross entropy.

    Args:
        encoder: Encoder that aggregates to one map.
        classes: Names of the classes, in the order of their labels.
        label_smoothing: Share of the target spread over all classes, 0..1.
        grid: Parts along each axis that the map is pooled to before the classifier.

    Raises:
        ValueError: No single map, or fewer than two classes.
    """

    name = "recognition"
    # A classifier in closed form takes the cube of their number.
    most_fitted = 5000
    # The head's batch norm; the encoder's are group norms.
    least_share = 2

    def __init__(
        self,
        encoder: SketchFusionEncoder,
        classes: Sequence[str],
        label_smoothing: float = 0.1,
        grid: int = 4,
    ) -> None:
        settings = {"classes": list(classes), "label_smoothing": label_smoothing, "grid": grid}
        super().__init__(encoder, settings)
        if len(classes) < 2:
            raise ValueError(f"expected at least two classes, got {list(classes)}.")
        self.classes = tuple(classes)
        self.label_smoothing = label_smoothing
        self.head = ClassifierHead(self.features.channels, len(classes), grid=grid)

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of images ``[B, 3, H, W]`` in -1..1."""
        logits: Tensor = self.head(self.features(image))
        return logits

    @torch.no_grad()
    def fit_head(self, batches: Iterable[Mapping[str, Any]]) -> bool:
        """Make the head the ridge classifier of the present features, see `ClassifierHead.fit`.

        Before training, so that features are changed less (LP-FT, Kumar et al. 2022); and after it,
        as a few hundred steps leave a wide linear layer behind its features (classifier
        re-training, Kang et al. 2020).

        Raises:
            ModuleNotFoundError: scikit-learn is not installed.
            ValueError: Fewer than two classes among the labels.
        """
        mode = self.training
        self.eval()
        found = [
            (self.head.pool(self.features(batch["image"])).float().cpu(), batch["label"].cpu())
            for batch in batches
        ]
        pooled, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        self.head.fit(pooled, labels)
        self.train(mode)
        return True

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Cross entropy of ``image`` [B, 3, H, W] and ``label`` [B]."""
        logits = self(batch["image"]).float()
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing)
        return {"loss": loss, "accuracy": (logits.argmax(1) == batch["label"]).float().mean()}
