"""Seeded noise that depends on the seed and the size alone, and how much of it a timestep has.

Every image of a batch sees the same draws, so features do not depend on what else is in the
batch. Draws are made on the CPU, so they do not depend on the device either. The operator is
opaque to ``torch.compile``, which would otherwise break the graph at the generator, and kept out of
CUDA graphs, which would replay the draw they saw. A graph captured by hand can hold no copy from
the CPU: it needs a generator of the GPU's, registered with it, or weights that take no noise.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sketchfusion_plugins.config import LARGEST_SEED

SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)


@torch.library.custom_op(
    "sketchfusion::seeded_noise", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
)
def _seeded_noise(like: Tensor, draws: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # CUDA takes its own copy of the draw before it returns, and need not wait for what has begun.
    return _draw(draws, like, generator).to(like.device, non_blocking=like.is_cuda)


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
        seed: Seed of 64 bits, used when no generator is given.
        generator: Generator of any device; it is advanced.

    Returns:
        Noise ``[E, C, h, w]``, float32, on the latents' device.

    Raises:
        TypeError: The seed is no integer.
        ValueError: It is too large.
    """
    if generator is not None:
        return _draw(draws, latents, generator).to(latents.device)
    seed = as_integer(seed)
    if not -LARGEST_SEED - 1 <= seed <= LARGEST_SEED:
        raise ValueError(
            f"seed must be an integer of {-LARGEST_SEED - 1} to {LARGEST_SEED}, got {seed}."
        )
    # Detached: noise is a constant, and the operator has no derivative to offer.
    noise: Tensor = _seeded_noise(latents.detach(), draws, seed)
    return noise


def noise_scales(scheduler: Mapping[str, Any], timestep: int) -> tuple[float, float]:
    """Factors of signal and noise at a timestep, as diffusers' own ``add_noise`` applies them.

    They do not depend on what the model predicts (noise, velocity or sample).

    Raises:
        ValueError: The schedule is not one of diffusion, or has no such timestep.
    """
    from diffusers import DDPMScheduler

    name = str(scheduler.get("_class_name", ""))
    if "FlowMatch" in name or "beta_schedule" not in scheduler:
        raise ValueError(
            f"expected a diffusion scheduler with a beta_schedule, got {name or dict(scheduler)}. "
            "Flow-matching models are not supported."
        )
    # All of Stable Diffusion's schedulers share the schedule; only their solvers differ.
    known = {key: value for key, value in scheduler.items() if key in SCHEDULE_KEYS}
    with torch.device("cpu"):
        ddpm = DDPMScheduler(**known)
        steps = ddpm.config["num_train_timesteps"]
        if not 0 <= timestep < steps:
            raise ValueError(
                f"timestep must be in 0..{steps - 1} for this scheduler, got {timestep}."
            )
        one, zero, step = torch.ones(1), torch.zeros(1), torch.tensor([timestep])
        return ddpm.add_noise(one, zero, step).item(), ddpm.add_noise(zero, one, step).item()


def as_integer(seed: Any) -> int:
    """A seed of numpy's, of a tensor, or whatever else Python counts with.

    Raises:
        TypeError: It is no integer.
    """
    # What is compiled or exported cannot look into tensors.
    if type(seed) is int:
        return seed
    try:
        return operator.index(seed)
    except TypeError as error:
        hint = " Pass a generator as generator=." if isinstance(seed, torch.Generator) else ""
        raise TypeError(f"seed must be an integer, got {seed!r}.{hint}") from error


def _draw(draws: int, like: Tensor, generator: torch.Generator) -> Tensor:
    # One call per draw: the prefix of a larger normal sample is not the smaller sample.
    shape = like.shape[1:]
    return torch.stack(
        [
            torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)
            for _ in range(draws)
        ]
    )
