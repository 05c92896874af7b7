"""What a task is: an encoder with a head and a loss, saved as adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from sketchfusion_plugins.adapter_file import Split
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.features import FusedFeatures


class Task(nn.Module):
    """An encoder that aggregates to one map, with a head and a loss.

    Args:
        encoder: The encoder.
        settings: What the attribute holds.

    Raises:
        ValueError: The encoder does not aggregate to one map.

    Attributes:
        name: Name of the task.
        most_fitted: Of how many items `fit_head` sees at most, evenly spaced.
        part_suffices: Whether it fits the head to such a part after training too, instead of
            leaving it as gradient made it.
        least_batch: Of how many items a batch, of all processes together, must be for its loss to
            teach something.
        least_share: Of how many items the share of every process must be, for what normalises by
            the batch.
        settings: Arguments, beside the encoder, that build it again; JSON values.
        image_size: Side, in pixels, of the square images it was trained on; None if not known.
        split: Part of its data that it was trained on; None if not known.
        features: The encoder's map.
    """

    name: ClassVar[str]
    most_fitted: ClassVar[int] = 1
    part_suffices: ClassVar[bool] = False
    least_batch: ClassVar[int] = 1
    least_share: ClassVar[int] = 1

    def __init__(self, encoder: SketchFusionEncoder, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.features = FusedFeatures(encoder)
        self.settings = dict(settings)
        self.image_size: int | None = None
        self.split: Split | None = None

    @property
    def encoder(self) -> SketchFusionEncoder:
        """The encoder, whose injection and aggregation train."""
        return self.features.encoder

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Losses of a batch by name; those whose name holds "loss" are added up and minimised."""
        raise NotImplementedError

    def fit_head(self, batches: Iterable[Mapping[str, Any]]) -> bool:
        """Fit what of the head has a closed form, to the present features.

        Training calls it before its first step and, unless only a part is fitted to that does not
        suffice, after its last.

        Args:
            batches: The training part without augmentation, on the task's device; see `loss`.

        Returns:
            Whether there was something to fit.
        """
        return False

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapters, head, settings, image size and split; see `checkpoint.save_adapters`."""
        from sketchfusion_plugins.checkpoint import save_adapters

        save_adapters(self, folder)
