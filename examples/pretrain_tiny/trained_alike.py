"""What rows must have in common to be held against each other: as many steps of training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def trained_steps(folder: Path) -> int | None:
    """How many steps a model of `fusion.py` trained for; None where it has not finished."""
    path = folder / "about.json"
    if not path.is_file():
        return None
    steps: int = json.loads(path.read_text(encoding="utf-8"))["steps"]
    return steps


def require_as_many_steps(steps: Mapping[str, int | None]) -> None:
    """Refuse rows that did not train alike.

    Args:
        steps: Of every row and seed, by name; those of which nothing is known do not count.

    Raises:
        ValueError: They differ.
    """
    known = {name: count for name, count in steps.items() if count is not None}
    if len(set(known.values())) > 1:
        listed = "; ".join(f"{name}: {count}" for name, count in known.items())
        raise ValueError(
            "trained rows of one table must have trained for the same number of steps, got "
            f"{listed}. Train the others again with fusion.py --steps, or leave them out with "
            "--rows or --seeds."
        )
