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
# PSC6K annotates Sketchy's pictures, of classes too that zero-shot retrieval holds out.
PART_OF = {"psc6k": "sketchy"}


def trained_on(model: str) -> tuple[tuple[str, str, int], ...]:
    """Task, source and seed of every training that a model has been through, as far as it knows.

    Raises:
        CheckpointError: A checkpoint is damaged.
        OSError: There is none.
    """
    split = read_split(model) if is_checkpoint(model) else None
    if split is None:
        return ()
    task, _ = read_task(model) or ("", {})
    return tuple(dict.fromkeys([*split.before, (task, split.source, split.seed)]))


def split_seed(models: Sequence[str], task: str, source: str, asked: int | None = None) -> int:
    """Seed of a split that holds out nothing that models were trained on.

    Args:
        models: Names of models; checkpoints of tasks remember the splits that they, and those that
            they started from, were trained on. They count where they are of the same data set.
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
        for trained, data, seed in trained_on(model):
            if _data_set(data) != _data_set(name):
                continue
            if (trained, _kind(data)) in alike:
                seeds[seed] = model
            else:
                others.append(f"{model} on {trained} of {data}")
    hint = f" Other data in the layout of {_kind(name)} take a label: {_kind(name)}@LABEL:FOLDER."
    if name == "openmoji":
        hint = ""
    if others:
        expected = ", ".join(f"{task} of {name}" for task, name in sorted(alike))
        raise ValueError(
            f"these models were trained on data that {task} of {name} keeps to judge on: "
            f"{', '.join(others)}. Expected models of {expected}, or of other data. Name such "
            f"models, or train one anew.{hint}"
        )
    if len({*seeds, asked} - {None}) > 1:
        known = ", ".join(f"{model} on that of seed {seed}" for seed, model in seeds.items())
        wanted = "different splits" if asked is None else f"another split than that of seed {asked}"
        raise ValueError(
            f"trained on {wanted} of {name}: {known}. What one split holds out, another "
            f"trains on. Leave --split-seed out, and name models of one split alone.{hint}"
        )
    return next(iter(seeds), 0 if asked is None else asked)


def _alike(task: str, name: str) -> frozenset[tuple[str, str]]:
    """What holds out the same as a task's source, itself included."""
    own = (task, _kind(name))
    return next((group for group in HELD_OUT_ALIKE if own in group), frozenset({own}))


def _kind(name: str) -> str:
    """Name of a source without its label."""
    return name.partition("@")[0]


def _data_set(name: str) -> tuple[str, str]:
    """What sources of one data set share: what comes before a dash, and the label."""
    kind, _, label = name.partition("@")
    start = kind.partition("-")[0]
    return PART_OF.get(start, start), label
