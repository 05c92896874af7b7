"""The split that models were trained on is the one to judge them by, or to train them on."""

from __future__ import annotations

from collections.abc import Sequence

from sketchfusion_plugins.adapter_file import read_split
from sketchfusion_plugins.data.sources import source_name
from sketchfusion_plugins.inference.models import is_checkpoint


def split_seed(models: Sequence[str], source: str, asked: int | None = None) -> int:
    """Seed of a split that holds out nothing that models were trained on.

    Args:
        models: Names of models; checkpoints of tasks remember the split that they were trained on.
            It counts where it is of the same source, or of another protocol on it: ``paired`` and
            ``paired-fine`` hold out alike.
        source: Data source, with or without its folder.
        asked: The seed that is wanted; None for the models', or 0 where they remember none.

    Raises:
        CheckpointError: A checkpoint is damaged.
        OSError: There is none.
        ValueError: Models were trained on another split than is asked for, or on different ones.
    """
    remembered = {}
    for model in models:
        split = read_split(model) if is_checkpoint(model) else None
        if split is not None and _stem(split.source) == _stem(source):
            remembered[model] = split.seed
    seeds = set(remembered.values())
    if len(seeds | ({asked} - {None})) > 1:
        trained = ", ".join(f"{model} on that of seed {seed}" for model, seed in remembered.items())
        wanted = "different splits" if asked is None else f"another split than that of seed {asked}"
        raise ValueError(
            f"trained on {wanted} of {source_name(source)}: {trained}. What one split holds out, "
            "another trains on. Leave --split-seed out, and name models of one split alone."
        )
    return next(iter(seeds), 0 if asked is None else asked)


def _stem(source: str) -> str:
    return source_name(source).partition("-")[0]
