"""What foundations compute with besides their weights.

It is written beside the weights' fingerprint. The noise level is not part of it: that is the
configuration's, and adapters may be loaded with another one.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from sketchfusion_plugins.fingerprint import sample_values

Settings = dict[str, list[float]]

# The embedding is computed, anew on every machine and maybe in bfloat16; what else there is comes
# out of files.
NULL_PROMPT = "null_prompt"
TOLERANCE, NULL_PROMPT_TOLERANCE = 1e-5, 0.1


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
    }
    return {name: [float(f"{value:.6g}") for value in values] for name, values in found.items()}


def hash_settings(settings: Settings) -> str:
    """Short hash of the settings that are the same on every machine: all but the null prompt."""
    exact = {name: values for name, values in settings.items() if name != NULL_PROMPT}
    return hashlib.sha256(json.dumps(exact, sort_keys=True).encode()).hexdigest()[:16]


def describe_difference(saved: Settings, encoder: Any) -> str:
    """Why adapters of foundations with saved settings are none of an encoder's; empty if they are.

    Settings that were not saved may be any.
    """
    wrong = [
        f"{name} {saved[name]}, got {values}"
        for name, values in read_settings(encoder).items()
        if name in saved and not _is_close(name, saved[name], values)
    ]
    if not wrong:
        return ""
    return (
        "was trained on foundations that compute otherwise than this model's. Expected "
        f"{'; '.join(wrong)}. Build the model with the expected foundations, the files beside "
        "their weights too: CLIP's preprocessor_config.json, the VAE's config.json, the text "
        "encoder."
    )


def _is_close(name: str, saved: list[float], found: list[float]) -> bool:
    if len(saved) != len(found):
        return False
    tolerance = NULL_PROMPT_TOLERANCE if name == NULL_PROMPT else TOLERANCE
    return saved == found or math.dist(saved, found) <= tolerance * math.hypot(*saved)
