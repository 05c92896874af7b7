"""The ladder of baselines that a trained model is held against, the same for every task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sketchfusion_plugins import __version__
from sketchfusion_plugins.config import EncoderConfig
from sketchfusion_plugins.data.task_data import TaskData, sum_of_files
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.evaluation.judge import Judge, SamePlace
from sketchfusion_plugins.evaluation.report import Identity, Report, Row, read_report
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


def baseline_identities(config: EncoderConfig, seed: int) -> dict[str, Identity]:
    """What tells measurements of `baselines` apart, of the rungs that an encoder is needed for.

    Args:
        config: The encoder's configuration.
        seed: Seed of its adapters.
    """
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:8]
    frozen = {
        "foundations": config.weights,
        "dtype": config.foundation_dtype,
        "config": digest,
    }
    fused = {**frozen, "seed": seed}
    return {"CLIP": frozen, "SD": frozen, "SD + CLIP": frozen, "fused, untrained": fused}


def evaluate(
    data: TaskData,
    models: Mapping[str, Builder],
    *,
    about: Mapping[str, Any] | None = None,
    identities: Mapping[str, Identity] | None = None,
    out: Path | None = None,
    finished: Callable[[str, Row], None] | None = None,
    **options: Any,
) -> Report:
    """Judge models one after the other.

    Args:
        data: Data of the task.
        models: How to build each model, by the name that the report gives it.
        about: What the report says of the data beside the numbers of items.
        identities: What tells one measurement of a model from another, by the model's name: its
            weights, their precision. This package's version is added.
        out: Folder for ``TASK.json`` and ``TASK.md``, written after every model. What a report
            there says of models with other names stays in it; what it says of a model of the same
            name and identity is not measured again.
        finished: Called with every model's name and measures.
        options: See `sketchfusion_plugins.evaluation.judge.Judge`.

    Raises:
        OSError: The folder cannot be written.
        ValueError: The folder holds a report on other data, or by another definition.
    """
    judge = Judge(data, **options)
    known: dict[str, Any] = {"n": len(data.test)}  # type: ignore[arg-type]
    if data.gallery is not None:
        known["gallery"] = len(data.gallery)  # type: ignore[arg-type]
    known["size"] = data.size
    if judge.definitions:
        known["definition"] = " and ".join(judge.definitions)
    # Where probes see all, reports of earlier versions go on.
    if judge.probed is not None and len(judge.probed) < len(data.fit):  # type: ignore[arg-type]
        known["probe"] = f"fitted on {len(judge.probed)} of {len(data.fit)}"  # type: ignore[arg-type]
    files = sum_of_files(data.test, data.gallery, data.fit)
    if files is not None:
        known["files"] = files
    report = Report(data.task, data.source, {**known, **(about or {})})
    done: dict[str, Row] = {}
    if out is not None and (out / f"{data.task}.json").exists():
        before = read_report(out / f"{data.task}.json", report)
        done, report.identities = before.rows, before.identities
    measured: dict[str, Row] = {}
    for name, build in models.items():
        identity = {**(identities or {}).get(name, {}), "sketchfusion_plugins": __version__}
        row = done.pop(name, None)
        if row is None or report.identities[name] != identity:
            row = judge(build())
            report.identities[name] = identity
        # What waits for its turn stays in the file: the next model may be the one that fails. What
        # another command has added since does too.
        measured[name] = row
        if out is not None and (out / f"{data.task}.json").exists():
            latest = read_report(out / f"{data.task}.json", report)
            done = {other: row for other, row in latest.rows.items() if other not in measured}
            own = {other: report.identities[other] for other in measured}
            report.identities = {**latest.identities, **own}
        report.rows = {**measured, **done}
        if out is not None:
            report.write(out)
        if finished is not None:
            finished(name, report.rows[name])
    return report
