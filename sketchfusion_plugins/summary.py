"""Parameters and FLOPs of a model's parts, counted without storage or weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn


class ParameterCount(NamedTuple):
    """Numbers of parameters; prints as one line, in the manner of peft."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.trainable / self.total if self.total else 0.0
        return (
            f"trainable params: {self.trainable:,} || all params: {self.total:,} || "
            f"trainable%: {share:.4f}"
        )


def count_parameters(module: nn.Module) -> ParameterCount:
    """Numbers of trainable and of all parameters of a module."""
    parameters = list(module.parameters())
    return ParameterCount(
        sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
    )


@dataclass(frozen=True)
class PartSummary:
    """One part of a model.

    Attributes:
        part: Its name.
        parameters: All its parameters.
        trainable: Those that train.
        flops: Floating point operations for one image, a multiply-add counting two.
    """

    part: str
    parameters: int
    trainable: int
    flops: int


def summarise(model: Any, side: int) -> list[PartSummary]:
    """Parts of a timm model of SketchFusion, the whole last; a head if it classifies.

    Args:
        model: A `timm_adapters.SketchFusion` in eval mode, built on the device ``"meta"``.
        side: Side of a square image in pixels, at least 32.
    """
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.empty(1, model.in_chans, side, side, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    flops = counter.get_flop_counts()
    root = type(model).__name__
    encoder = model.encoder
    parts = {
        "VAE encoder": ("encoder.diffusion.vae", encoder.diffusion.vae),
        "UNet to the last tap": ("encoder.diffusion.denoiser", encoder.diffusion.denoiser),
        "semantic branch": ("encoder.semantic", encoder.semantic),
        "injection": ("encoder.injector", encoder.injector),
        "aggregation": ("encoder.aggregator", encoder.aggregator),
        "head": ("head", model.head),
    }
    counts = {path: sum(flops.get(f"{root}.{path}", {}).values()) for path, _ in parts.values()}
    # The VAE's encode is called, not its forward, so the counter sees its children alone.
    counts["encoder.diffusion.vae"] = sum(
        sum(flops.get(f"{root}.encoder.diffusion.vae.{name}", {}).values())
        for name, _ in encoder.diffusion.vae.named_children()
    )
    # Injection happens between the UNet's blocks, so the counter sees it inside the denoiser.
    counts["encoder.diffusion.denoiser"] -= counts["encoder.injector"]
    rows = [
        PartSummary(
            title, count_parameters(module).total, count_parameters(module).trainable, counts[path]
        )
        for title, (path, module) in parts.items()
        if title != "head" or model.num_classes
    ]
    whole = count_parameters(model)
    rows.append(PartSummary("all", whole.total, whole.trainable, counter.get_total_flops()))
    return rows
