"""What timm looks for in ``config.json``, by which a folder of adapters is a timm model too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sketchfusion_plugins.adapter_file import WEIGHTS_FILE
from sketchfusion_plugins.config import EncoderConfig
from sketchfusion_plugins.presets import BK_SDM_V2_SMALL, TINY_DIFFUSION

TIMM_CFG: dict[str, Any] = {
    # A sketch's strokes reach its border: nothing is cropped, no bars are added.
    "crop_pct": 1.0,
    "crop_mode": "squash",
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "classifier": "head.fc",
    "hf_hub_filename": WEIGHTS_FILE,
    "custom_load": "hf",
}
"""What timm is told of every model."""
# timm's name for a diffusion source, and the side of its images.
_TIMM_MODELS = {
    TINY_DIFFUSION: ("sketchfusion_tiny", 128),
    BK_SDM_V2_SMALL: ("sketchfusion_small", 256),
}
_TIMM_BASE = ("sketchfusion_base", 336)


def timm_entries(config: EncoderConfig, task: Mapping[str, Any] | None) -> dict[str, Any]:
    """Entries that make adapters a timm model without a classifier, ``local-dir:FOLDER``.

    Empty for levels that are not aggregated to one map, since timm's models give one.

    Args:
        config: The encoder's.
        task: Description of the task that the adapters were trained for, whose image size counts.
    """
    if config.aggregation is None or not isinstance(config.aggregation.stride, int):
        return {}
    name, side = _TIMM_MODELS.get(config.diffusion.source, _TIMM_BASE)
    side = (task or {}).get("image_size") or side
    return {
        "architecture": name,
        "num_classes": 0,
        "model_args": {"in_chans": config.in_channels},
        "pretrained_cfg": {**TIMM_CFG, "input_size": (config.in_channels, side, side)},
    }
