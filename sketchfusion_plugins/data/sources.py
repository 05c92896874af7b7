"""Where the tasks' data comes from, by name.

A source is ``"openmoji"``, which needs no download, or ``"name:folder"``; ``SOURCES`` lists them by
task. The layout of every folder is in the module of its data set. Other data in that layout are
``"name@label:folder"``, with a label of one's own: models remember by name and label what they were
trained on, and are not judged on what another split or task of the same data trained on.

Fine-grained retrieval asks for the very photo: ``sketchy-fine`` and ``paired-fine`` search those of
all held-out classes, ``sketchy-fine-category`` those of the sketch's own class, which is easier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from sketchfusion_plugins.data import folder_retrieval, folder_tasks, openmoji_tasks
from sketchfusion_plugins.data.paired import load_paired
from sketchfusion_plugins.data.quickdraw_extended import load_quickdraw_extended
from sketchfusion_plugins.data.task_data import TaskData

Loader = Callable[[str, int, int, int | None], TaskData]

SOURCES: dict[str, dict[str, Loader]] = {
    "recognition": {
        "openmoji": openmoji_tasks.recognition,
        "quickdraw": folder_tasks.quickdraw_recognition,
        "sketchy": partial(folder_tasks.recognition, folder_tasks.sketchy),
        "tuberlin": partial(folder_tasks.recognition, folder_tasks.tuberlin),
    },
    "retrieval": {
        "openmoji": openmoji_tasks.retrieval,
        "paired": partial(folder_retrieval.retrieval, load_paired, None, "label"),
        "paired-fine": partial(folder_retrieval.retrieval, load_paired, None, "instance"),
        "quickdraw-extended": partial(
            folder_retrieval.retrieval, load_quickdraw_extended, "quickdraw_30", "label"
        ),
        "sketchy": partial(folder_retrieval.retrieval, folder_tasks.sketchy, "sketchy_21", "label"),
        "sketchy-25": partial(
            folder_retrieval.retrieval, folder_tasks.sketchy, "sketchy_25", "label"
        ),
        "sketchy-fine": partial(
            folder_retrieval.retrieval, folder_tasks.sketchy, "sketchy_21", "instance"
        ),
        "sketchy-fine-category": partial(
            folder_retrieval.retrieval,
            folder_tasks.sketchy,
            "sketchy_21",
            "instance",
            own_category=True,
        ),
        "tuberlin": partial(
            folder_retrieval.retrieval, folder_tasks.tuberlin, "tuberlin_30", "label"
        ),
    },
    "query_segmentation": {
        "openmoji": openmoji_tasks.query_segmentation,
        "folders": folder_tasks.query_segmentation,
    },
    "correspondence": {
        "openmoji": openmoji_tasks.correspondence,
        "psc6k": partial(folder_tasks.psc6k, "sketchfusion"),
        "psc6k-pscnet": partial(folder_tasks.psc6k, "pscnet"),
    },
}


def load_task_data(
    task: str, source: str, size: int = 128, seed: int = 0, limit: int | None = None
) -> TaskData:
    """Data of a task from a source.

    Args:
        task: ``"recognition"``, ``"retrieval"``, ``"query_segmentation"`` or
            ``"correspondence"``.
        source: ``"openmoji"`` or ``"name:folder"``; see ``SOURCES``.
        size: Side of the images in pixels.
        seed: Seed of the split, where the source has none of its own, and of OpenMoji's warps.
        limit: Use fewer items, for a quick look: concepts of OpenMoji, else items per class.

    Raises:
        FileNotFoundError: Files of the source are missing.
        ModuleNotFoundError: A package is missing.
        ValueError: Unknown task or source, or a source without data for the task.
    """
    return replace(find_loader(task, source)(source, size, seed, limit), split_seed=seed)


def find_loader(task: str, source: str) -> Loader:
    """What reads a task's data from a source; nothing is read yet.

    Raises:
        ValueError: Unknown task or source, or a source without data for the task.
    """
    (name, at, label), folder = source_name(source).partition("@"), source.partition(":")[2]
    if task not in SOURCES:
        raise ValueError(f"unknown task {task!r}; choose one of {', '.join(SOURCES)}.")
    if name not in SOURCES[task]:
        raise ValueError(
            f"{task} has no data source {name!r}; choose one of {', '.join(SOURCES[task])}, with "
            "its folder after a colon (all but openmoji), such as "
            f"'{next(known for known in SOURCES[task] if known != 'openmoji')}:/data'."
        )
    if (name == "openmoji") == bool(folder) or (at and not (label and folder)):
        raise ValueError(
            f"expected 'openmoji' or a name with its folder, such as 'sketchy:/data/sketchy' or "
            f"'tuberlin@mine:/data/mine', got {source!r}."
        )
    return SOURCES[task][name]


def source_name(source: str) -> str:
    """Name of a source, with its label if it has one, without its folder.

    ``"sketchy:/data/sketchy"`` is ``"sketchy"``, ``"tuberlin@mine:/data"`` ``"tuberlin@mine"``.
    """
    return source.partition(":")[0]
