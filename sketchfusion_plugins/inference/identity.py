"""What tells a model from others of its name, without loading anything large."""

from __future__ import annotations

from typing import Any

from sketchfusion_plugins.adapter_file import locate
from sketchfusion_plugins.config import Weights
from sketchfusion_plugins.files import hash_file
from sketchfusion_plugins.inference.models import PLAIN, config_of, is_checkpoint


def identify(name: str, weights: Weights = "pretrained") -> str:
    """A name with what must be the same for the same answers.

    Raises:
        CheckpointError: The checkpoint is damaged.
        OSError: There is none.
        ValueError: Unknown name.
    """
    if name in PLAIN:
        return name
    if name.startswith("timm:"):
        return f"{name} ({weights})"
    foundations = f"{config_of(name, weights).weights} foundations"
    if not is_checkpoint(name):
        return f"{name} ({foundations})"
    return f"{name} ({foundations}, adapters {_adapters(name)})"


def identity_of(
    name: str, weights: Weights = "pretrained", dtype: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """What must be the same, beside the name, for the same measures.

    Args:
        name: See `sketchfusion_plugins.inference.models.open_model`.
        weights: See there.
        dtype: See there.
        seed: See there; it counts for fresh adapters alone.

    Returns:
        JSON values.

    Raises:
        CheckpointError: The checkpoint is damaged.
        OSError: There is none.
        ValueError: Unknown name.
    """
    if name in PLAIN:
        return {}
    if name.startswith("timm:"):
        return {"weights": weights}
    config = config_of(name, weights)
    found = {"foundations": config.weights, "dtype": dtype or config.foundation_dtype}
    if is_checkpoint(name):
        return {**found, "adapters": _adapters(name)}
    return {**found, "seed": seed}


def _adapters(name: str) -> str:
    """Short hash of a checkpoint's file."""
    return hash_file(locate(name, None))[:8]
