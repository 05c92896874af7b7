"""What foundations compute with besides their weights.

It is written beside the weights' fingerprint. The noise level is not part of it: that is the
configuration's, and adapters may be loaded with another one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchfusion_plugins.fingerprint import (
    ACTIVATION_POINTS,
    attention_heads,
    sample_activations,
    sample_values,
)

Settings = dict[str, list[float]]

# The embedding is computed, anew on every machine and maybe in bfloat16; what else there is comes
# out of files.
NULL_PROMPT = "null_prompt"
TOLERANCE, NULL_PROMPT_TOLERANCE = 1e-5, 0.1

# The semantic branch's, which a CLIP's or timm's configuration chooses: its values, see
# `sample_activations`. Of versions that did not write it down, it may be any.
ACTIVATION = "activation"
# Chosen by configurations, too; neither did earlier versions write them down.
UNHASHED = ("unet_heads", "semantic_heads", "latents_mean", "latents_std")
_ACTIVATION_NAMES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


def read_settings(encoder: Any) -> Settings:
    """Settings of an encoder's foundations by name; none of one without values (meta device)."""
    diffusion, semantic = encoder.diffusion, encoder.semantic
    embedding = diffusion.denoiser.null_embedding
    if embedding.is_meta:
        return {}
    found = {
        "mean": semantic.mean,
        "std": semantic.std,
        "latents": (diffusion.scaling_factor, diffusion.shift_factor),
        NULL_PROMPT: sample_values(embedding).tolist(),
        "latents_mean": diffusion.latents_mean,
        "latents_std": diffusion.latents_std,
    }
    for name, part in (("unet_heads", diffusion.denoiser), ("semantic_heads", semantic)):
        heads = attention_heads(part) if isinstance(part, nn.Module) else []
        if heads:
            found[name] = heads
    rounded = {name: [float(f"{value:.6g}") for value in values] for name, values in found.items()}
    return {**rounded, **read_activation(semantic)}


def refuse_lost_activations(foundations: Iterable[nn.Module]) -> None:
    """Refuse foundations whose batch norms lost the activation that they bring.

    torch's conversion to SyncBatchNorm, which Lightning and mmengine's ``sync_bn="torch"`` use,
    puts plain ones in the place of timm's ``BatchNormAct2d``. Names and weights stay as they were.

    Raises:
        ValueError: A part was converted so.
    """
    for foundation in foundations:
        for name, module in foundation.named_modules():
            lost = getattr(module, "act", nn.Identity())
            if type(module) is nn.SyncBatchNorm and not isinstance(lost, nn.Identity):
                raise ValueError(
                    f"the foundations were converted to SyncBatchNorm, which drops the "
                    f"activation of {name}: features would be wrong. Convert what trains alone "
                    "(mmseg: model.decode_head.norm_cfg.type=SyncBN), or by "
                    "timm.layers.convert_sync_batchnorm."
                )


def read_activation(model: Any) -> Settings:
    """The one setting of a model that weights and configuration leave open; empty without any."""
    values = sample_activations(model) if isinstance(model, nn.Module) else []
    return {ACTIVATION: values} if values else {}


def hash_settings(settings: Settings) -> str:
    """Short hashes of the settings that are the same on every machine: not of the null prompt.

    Two with a point between: that of the activation comes second. Earlier versions wrote the first
    alone, and nothing for models that have no other setting; what none of them knew is left out.
    """
    left_out = (NULL_PROMPT, ACTIVATION, *UNHASHED)
    others = {name: values for name, values in settings.items() if name not in left_out}
    activation = settings.get(ACTIVATION)
    first = _hash(others) if others else ""
    return first if activation is None else f"{first}.{_hash(activation)}"


def are_alike(one: str, other: str) -> bool:
    """Whether `hash_settings` gave the same for two models, as far as it was written for both."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return all(a == b for a, b in pairs if a and b)


def describe_difference(saved: Settings, encoder: Any) -> str:
    """Why adapters of foundations with saved settings are none of an encoder's; empty if they are.

    Settings that were not saved may be any.
    """
    wrong = [
        f"{name} {_show(name, saved[name])}, got {_show(name, values)}"
        for name, values in read_settings(encoder).items()
        if name in saved and not _is_close(name, saved[name], values)
    ]
    if not wrong:
        return ""
    return (
        "was trained on foundations that compute otherwise than this model's. Expected "
        f"{'; '.join(wrong)}. Build the model with the expected foundations, the files beside "
        "their weights too: CLIP's preprocessor_config.json and config.json (hidden_act is its "
        "activation, num_attention_heads its heads), the VAE's config.json, the text encoder. Of "
        "timm's CLIPs the name tells the activation: those with quickgelu compute with quick_gelu."
    )


def _hash(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _show(name: str, values: list[float]) -> str:
    """Values of a setting; activations that have a name by it."""
    if name != ACTIVATION:
        return str(values)
    points = torch.tensor(ACTIVATION_POINTS, dtype=torch.float64, device="cpu")
    known = {title: compute(points).tolist() for title, compute in _ACTIVATION_NAMES.items()}
    step = len(ACTIVATION_POINTS)
    kinds = [values[start : start + step] for start in range(0, len(values), step)]
    return " and ".join(
        next((title for title in known if _is_close(name, kind, known[title])), str(kind))
        for kind in kinds
    )


def _is_close(name: str, saved: list[float], found: list[float]) -> bool:
    if len(saved) != len(found):
        return False
    tolerance = NULL_PROMPT_TOLERANCE if name == NULL_PROMPT else TOLERANCE
    return saved == found or math.dist(saved, found) <= tolerance * math.hypot(*saved)
