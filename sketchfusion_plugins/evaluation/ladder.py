"""The ladder of baselines that a trained model is held against, the same for every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sketchfusion_plugins.data.task_data import TaskData
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.evaluation.judge import Judge, SamePlace
from sketchfusion_plugins.evaluation.report import Report, Row, read_rows
from sketchfusion_plugins.features import (
    ClipFeatures,
    ConcatenatedFeatures,
    DiffusionFeatures,
    Features,
    FusedFeatures,
    HogFeatures,
    PixelFeatures,
    RandomFeatures,
)
from sketchfusion_plugins.tasks.base import Task

Builder = Callable[[], Task | Features]


def baselines(task: str, encoder: SketchFusionEncoder) -> dict[str, Builder]:
    """Rungs below a trained model, the lowest first.

    Args:
        task: Name of the task.
        encoder: Encoder with freshly initialised adapters, whose parts are rungs of their own.
    """
    rungs: dict[str, Builder] = {
        "chance": RandomFeatures,
        "pixels": PixelFeatures,
        "HOG": HogFeatures,
        "CLIP": lambda: ClipFeatures(encoder),
        "SD": lambda: DiffusionFeatures(encoder),
        "SD + CLIP": lambda: ConcatenatedFeatures(encoder),
        "fused, untrained": lambda: FusedFeatures(encoder),
    }
    if task == "correspondence":
        rungs = {"chance": RandomFeatures, "same place": SamePlace, **rungs}
    return rungs


def evaluate(
    data: TaskData,
    models: Mapping[str, Builder],
    *,
    about: Mapping[str, Any] | None = None,
    out: Path | None = None,
    finished: Callable[[str, Row], None] | None = None,
    **options: Any,
) -> Report:
    """Judge models one after the other.

    Args:
        data: Data of the task.
        models: How to build each model, by the name that the report gives it.
        about: What the report says beside the numbers of items.
        out: Folder for ``TASK.json`` and ``TASK.md``, written after every model. What a report
            there has measured on the same data is not measured again, and stays in it.
        finished: Called with every model's name and measures.
        options: See `sketchfusion_plugins.evaluation.judge.Judge`.

    Raises:
        OSError: The folder cannot be written.
        ValueError: The folder holds a report on other data.
    """
    counts = {"n": len(data.test)}  # type: ignore[arg-type]
    if data.gallery is not None:
        counts["gallery"] = len(data.gallery)  # type: ignore[arg-type]
    report = Report(data.task, data.source, {**counts, "size": data.size, **(about or {})})
    measured: dict[str, Row] = {}
    done: dict[str, Row] = {}
    if out is not None and (out / f"{data.task}.json").exists():
        done = read_rows(out / f"{data.task}.json", report)
    judge = Judge(data, **options)
    for name, build in models.items():
        row = done.pop(name, None) or judge(build())
        # What waits for its turn stays in the file: the next model may be the one that fails.
        report.rows = {**measured, name: row, **done}
        measured[name] = row
        if out is not None:
            report.write(out)
        if finished is not None:
            finished(name, report.rows[name])
    return report
