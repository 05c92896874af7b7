"""Curves of training runs, from the logs that trainers write."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Curve = tuple[NDArray[np.int64], NDArray[np.float64]]

SCALARS = "*/vis_data/scalars.json"
# What says when and how fast, not how well.
CLOCKS = frozenset({"step", "iter", "epoch", "time", "data_time", "seconds", "memory", "base_lr"})


def read_training_log(path: str | Path) -> dict[str, Curve]:
    """Everything that a run has logged, by name.

    Args:
        path: A work folder of ``sketchfusion train``, ``sketchfusion mm-train`` or any mmengine
            Runner, where what was resumed is joined to what it goes on from, and a run that began
            anew hides those before it; or a file of JSON lines with a "step" in each, such as those
            that ``examples/pretrain_tiny`` writes.

    Returns:
        Steps, increasing, and values of every measure. Of a measure that is logged again after a
        resume, only what lies before its first step there is left; in one file, the later of a
        step's values. Clocks are left out.

    Raises:
        FileNotFoundError: There is no log.
        ValueError: A file has a line that is no JSON object with a "step", a last one apart, which
            a killed run may leave half written.
    """
    path = Path(path).expanduser()
    # mmengine names a start's folder after its time, so that they sort.
    files = sorted(path.glob(SCALARS)) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(
            f"{path} holds no training log; expected a file of JSON lines, or a work folder with "
            f"{SCALARS}."
        )
    found: dict[str, dict[int, float]] = {}
    for file in files:
        if _begins_anew(file):
            found.clear()
        started: dict[str, dict[int, float]] = {}
        for entry in _entries(file):
            for name, value in entry.items():
                if name not in CLOCKS and isinstance(value, int | float):
                    started.setdefault(name, {})[int(entry["step"])] = float(value)
        for name, values in started.items():
            first = next(iter(values))
            before = {step: value for step, value in found.get(name, {}).items() if step < first}
            found[name] = before | values
    return {name: _curve(values) for name, values in found.items()}


def _begins_anew(file: Path) -> bool:
    """Whether the config that mmengine keeps beside a start's log says that it resumed nothing."""
    config = file.with_name("config.py")
    if not config.is_file():
        return False
    return re.search(r"^resume = True$", config.read_text(encoding="utf-8"), re.M) is None


def _entries(file: Path) -> list[dict[str, float]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    entries: list[dict[str, float]] = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int | float):
                raise ValueError("no object with a step")
        except ValueError as error:
            if entries and number == len(lines):
                break
            raise ValueError(
                f'{file}, line {number}: expected a JSON object with a number "step", got '
                f"{line[:60]!r}."
            ) from error
        entries.append(entry)
    return entries


def _curve(values: dict[int, float]) -> Curve:
    steps = sorted(values)
    return np.array(steps), np.array([values[step] for step in steps])
