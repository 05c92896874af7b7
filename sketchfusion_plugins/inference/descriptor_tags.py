"""What must be the same of descriptors that are compared: weights, settings and size."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from sketchfusion_plugins.checkpoint import adapter_state, fingerprint
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.features import FusedFeatures, TimmFeatures
from sketchfusion_plugins.foundation_settings import hash_settings, read_activation, read_settings
from sketchfusion_plugins.tasks.base import Task

# Values of the configuration that say where weights come from and how they are held; the weights
# themselves are in the fingerprint.
_WHEREABOUTS = {
    None: ("weights", "random_seed", "foundation_dtype", "freeze_foundations"),
    "diffusion": ("source", "revision", "variant", "unet_file", "ensemble_chunk"),
    "semantic": ("source", "revision", "variant"),
}


def model_fingerprint(model: nn.Module) -> str:
    """Short hash that tells models apart whose descriptors must not be compared.

    The same in every process and on every device, whatever the precision of frozen foundations and
    wherever they were loaded from.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    encoders = [child for child in model.modules() if isinstance(child, SketchFusionEncoder)]
    if encoders:
        config = encoders[0].config.to_dict()
        for part, names in _WHEREABOUTS.items():
            for name in names:
                del (config if part is None else config[part])[name]
        # As indexes have it that were written before there was a choice.
        if config["semantic"]["shrink"]:
            del config["semantic"]["shrink"]
        digest.update(json.dumps(config, sort_keys=True).encode())
        digest.update(fingerprint(encoders[0]).encode())
        if isinstance(model, Task | FusedFeatures):
            _add_tensors(digest, adapter_state(model))
            digest.update(json.dumps(getattr(model, "settings", None), sort_keys=True).encode())
    else:
        digest.update(str(getattr(model, "size", None)).encode())
        if getattr(model, "channels_last", False):
            # Versions that left such maps as they are made other descriptors of the same weights.
            digest.update(b"channels first")
        _add_tensors(digest, model.state_dict())
    return digest.hexdigest()[:16]


def model_settings(model: nn.Module) -> str:
    """Short hashes of what a model computes with besides weights; empty without any.

    See `hash_settings`. Of an encoder it is what its foundations compute with.
    """
    encoders = [child for child in model.modules() if isinstance(child, SketchFusionEncoder)]
    if encoders:
        return hash_settings(read_settings(encoders[0]))
    settings = read_activation(model)
    if isinstance(model, TimmFeatures):
        settings |= {part: list(getattr(model.normalise, part)) for part in ("mean", "std")}
    return hash_settings(settings)


def descriptor_tag(fingerprint: str, settings: str, size: int) -> str:
    """What must be the same of all descriptors in a file.

    Args:
        fingerprint: See `model_fingerprint`.
        settings: See `model_settings`.
        size: Side, in pixels, of the square that pictures are padded to.
    """
    return f"{fingerprint}{settings and '+'}{settings}@{size}"


def _add_tensors(digest: Any, tensors: dict[str, torch.Tensor]) -> None:
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
