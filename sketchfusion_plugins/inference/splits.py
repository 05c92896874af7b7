"""The split that models were trained on is the one to judge them by, or to train them on."""

from __future__ import annotations

from collections.abc import Sequence

from sketchfusion_plugins.adapter_file import read_split, read_task
from sketchfusion_plugins.data.sources import SOURCES, find_loader, source_name
from sketchfusion_plugins.inference.models import is_checkpoint

# Tasks' sources that hold out the same. Any others of one data set do not: their protocols hold out
# other classes, and recognition holds out pictures of every class.
HELD_OUT_ALIKE = (
    frozenset({("retrieval", "paired"), ("retrieval", "paired-fine")}),
    frozenset(("retrieval", name) for name in ("sketchy", "sketchy-fine", "sketchy-fine-category")),
    frozenset((task, "openmoji") for task in SOURCES),
)


def split_seed(models: Sequence[str], task: str, source: str, asked: int | None = None) -> int:
    """Seed of a split that holds out nothing that models were trained on.

    Args:
        models: Names of models; checkpoints of tasks remember the split that they were trained on.
            It counts where it is of the same data set.
        task: Task to judge or to train.
        source: Its data source, with its folder.
        asked: The seed that is wanted; None for the models', or 0 where they remember none.

    Raises:
        CheckpointError: A checkpoint is damaged.
        OSError: There is none.
        ValueError: Unknown task or source; or models were trained on another split of its data set
            than is asked for, on different ones, or on a source that does not hold out alike.
    """
    find_loader(task, source)
    name = source_name(source)
    alike = _alike(task, name)
    seeds, others = {}, []
    for model in models:
        split = read_split(model) if is_checkpoint(model) else None
        if split is None or _data_set(split.source) != _data_set(name):
            continue
        trained, _ = read_task(model) or ("", {})
        if (trained, split.source) in alike:
            seeds[model] = split.seed
        else:
            others.append(f"{model} on {trained} of {split.source}")
    if others:
        expected = ", ".join(f"{task} of {name}" for task, name in sorted(alike))
        raise ValueError(
            f"trained on part of what {task} of {name} holds out: {', '.join(others)}. Expected "
            f"models of {expected}, or of other data. Name such models, or train one anew."
        )
    if len({*seeds.values(), asked} - {None}) > 1:
        trained_on = ", ".join(f"{model} on that of seed {seed}" for model, seed in seeds.items())
        wanted = "different splits" if asked is None else f"another split than that of seed {asked}"
        raise ValueError(
            f"trained on {wanted} of {name}: {trained_on}. What one split holds out, another "
            "trains on. Leave --split-seed out, and name models of one split alone."
        )
    return next(iter(seeds.values()), 0 if asked is None else asked)


def _alike(task: str, name: str) -> frozenset[tuple[str, str]]:
    """What holds out the same as a task's source, itself included."""
    own = (task, name)
    return next((group for group in HELD_OUT_ALIKE if own in group), frozenset({own}))


def _data_set(name: str) -> str:
    """Sources of one data set share what comes before a dash: other protocols on it."""
    return name.partition("-")[0]
