"""Seeded noise that depends on the seed and the size alone.

Every image of a batch sees the same draws, so features do not depend on what else is in the
batch. Draws are made on the CPU, so they do not depend on the device either. The operator is
opaque to ``torch.compile``, which would otherwise break the graph at the generator.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("sketchfusion::seeded_noise", mutates_args=())
def _seeded_noise(like: Tensor, draws: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return _draw(draws, like, generator).to(like.device)


@_seeded_noise.register_fake
def _(like: Tensor, draws: int, seed: int) -> Tensor:
    return torch.empty((draws, *like.shape[1:]), dtype=torch.float32, device=like.device)


def draw_noise(
    latents: Tensor, draws: int, seed: int, generator: torch.Generator | None = None
) -> Tensor:
    """Standard normal noise for latents.

    Draw ``i`` is the ``i``-th sample of the generator, so the first draw of an ensemble is the
    single draw of a plain call.

    Args:
        latents: ``[B, C, h, w]``, of which only ``C, h, w`` and the device matter.
        draws: Number of draws ``E``.
        seed: Seed, used when no generator is given.
        generator: Generator of any device; it is advanced.

    Returns:
        Noise ``[E, C, h, w]``, float32, on the latents' device.
    """
    if generator is not None:
        return _draw(draws, latents, generator).to(latents.device)
    # Detached: noise is a constant, and the operator has no derivative to offer.
    noise: Tensor = _seeded_noise(latents.detach(), draws, seed)
    return noise


def _draw(draws: int, like: Tensor, generator: torch.Generator) -> Tensor:
    # One call per draw: the prefix of a larger normal sample is not the smaller sample.
    shape = like.shape[1:]
    return torch.stack(
        [torch.randn(shape, generator=generator, device=generator.device) for _ in range(draws)]
    )
