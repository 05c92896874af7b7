"""Tasks by name, and from checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sketchfusion_plugins.adapter_file import (
    CheckpointError,
    read_config,
    read_image_size,
    read_split,
    read_task,
)
from sketchfusion_plugins.checkpoint import load_adapters
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.tasks.base import Task
from sketchfusion_plugins.tasks.correspondence import Correspondence
from sketchfusion_plugins.tasks.query_segmentation import QuerySegmentation
from sketchfusion_plugins.tasks.recognition import Recognition
from sketchfusion_plugins.tasks.retrieval import Retrieval

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Recognition, Retrieval, QuerySegmentation, Correspondence)
}


def build_task(name: str, encoder: SketchFusionEncoder, **settings: Any) -> Task:
    """Build a task.

    Args:
        name: One of ``TASKS``.
        encoder: Encoder that aggregates to one map.
        settings: Arguments of the task's class.

    Raises:
        ValueError: Unknown name, or settings that the task does not have.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}.")
    try:
        return TASKS[name](encoder, **settings)
    except TypeError as error:
        raise ValueError(f"{name} cannot be built with {settings}: {error}.") from error


def load_task(
    source: str | Path,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    **changes: Any,
) -> Task:
    """Build the task that a checkpoint describes and load its adapters and head.

    Args:
        source: Folder written by `Task.save_pretrained`, or a Hugging Face id of one.
        revision: Branch, tag or commit of a hub id.
        allow_pickle: Accept pickled foundation weights; see `SketchFusionEncoder`.
        changes: Fields of the encoder's config to change, as in `EncoderConfig.replace`.

    Raises:
        CheckpointError: The checkpoint is damaged, holds no task, or was made for other
            foundations.
        OSError: It, or its foundations, cannot be found.
    """
    described = read_task(source, revision=revision)
    if described is None:
        raise CheckpointError(
            f"{source} holds an encoder's adapters and no task. Load it with "
            "SketchFusionEncoder.from_pretrained, or train a task on it."
        )
    config = read_config(source, revision=revision).replace(**changes)
    encoder = SketchFusionEncoder(config, allow_pickle=allow_pickle)
    name, settings = described
    try:
        task = build_task(name, encoder, **settings)
    except ValueError as error:
        raise CheckpointError(f"{source} describes a task that does not fit: {error}") from error
    load_adapters(task, source, revision=revision)
    task.image_size = read_image_size(source, revision=revision)
    task.split = read_split(source, revision=revision)
    return task.eval()
