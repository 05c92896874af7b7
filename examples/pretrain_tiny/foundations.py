"""Foundations in the preset's architecture: those that were exported, or random ones to scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from data import load_pictures
from torch import Tensor, nn
from training import normalise

from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.presets import preset


def load_foundations(
    foundations: Path, *, random_seed: int | None = None, changes: Mapping[str, Any] | None = None
) -> SketchFusionEncoder:
    """Encoder with fresh adapters.

    Args:
        foundations: Folder that `export.py` wrote.
        random_seed: Of random weights in the same architecture; None for those in the folder.
        changes: Of the preset, as `EncoderConfig.replace` takes them.
    """
    config = preset("tiny").replace(
        diffusion__source=str(foundations / "diffusion"),
        semantic__source=str(foundations / "semantic"),
    )
    if random_seed is None:
        config = config.replace(weights="pretrained")
    else:
        config = config.replace(weights="random", random_seed=random_seed)
    return SketchFusionEncoder(config.replace(**(changes or {}))).eval()


@torch.no_grad()
def calibrate(encoder: SketchFusionEncoder, images: Tensor) -> None:
    """Give random foundations the statistics that training would have.

    Batch norms get the pictures' means and variances, and latents unit variance: without them the
    control would fail for want of scale rather than of learning.

    Args:
        encoder: Encoder with random weights.
        images: ``[B, 3, H, W]`` in -1..1.
    """
    tower = encoder.semantic
    norms = [module for module in tower.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    encoder.forward_tokens(images)
    tower.eval()
    diffusion = encoder.diffusion
    diffusion.scaling_factor /= float(diffusion.encode(images, seed=0).std())


def calibration_pictures(work: Path) -> Tensor:
    """256 training pictures, ``[256, 3, 128, 128]`` in -1..1."""
    pixels = load_pictures(work)[0].pixels
    return normalise(pixels[:: len(pixels) // 256][:256])
