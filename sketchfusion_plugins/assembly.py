"""Building the encoder's parts from its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

from sketchfusion_plugins.aggregation import AdaptiveAggregation, AdaptivePyramid
from sketchfusion_plugins.config import AggregationConfig, EncoderConfig
from sketchfusion_plugins.denoiser import Block, default_taps, list_blocks
from sketchfusion_plugins.diffusion import Diffusion, load_diffusion, skip_random_weights
from sketchfusion_plugins.hub import refuse_unavailable
from sketchfusion_plugins.semantic import SemanticBranch
from sketchfusion_plugins.semantic_loading import load_semantic


def adopt_branch(config: EncoderConfig, diffusion: Diffusion | None) -> EncoderConfig:
    """Configuration of an encoder that is given a ready diffusion branch: it has the branch's own.

    Raises:
        ValueError: The configuration names other taps than the branch returns.
    """
    if diffusion is None:
        return config
    denoiser = diffusion.denoiser
    if config.taps is not None:
        if set(config.taps) != set(denoiser.taps):
            raise ValueError(
                f"the ready diffusion branch returns {', '.join(denoiser.taps)}, the configuration "
                f"names the taps {', '.join(config.taps)}. Build the branch with those taps, or "
                "leave taps=None to take the branch's."
            )
        return config.replace(diffusion=diffusion.config)
    default = default_taps(list_blocks(denoiser.unet.config, diffusion.latent_stride))
    taps = None if set(default) == set(denoiser.taps) else denoiser.taps
    return config.replace(diffusion=diffusion.config, taps=taps)


def load_foundations(
    config: EncoderConfig,
    allow_pickle: bool = False,
    diffusion: Diffusion | None = None,
    semantic: SemanticBranch | None = None,
) -> tuple[Diffusion, SemanticBranch]:
    """Both branches, loaded or random on the default device unless they are given.

    Raises:
        OSError: Foundations cannot be loaded.
        ValueError: They are of a kind that is not supported.
    """
    device = torch.get_default_device()
    options: dict[str, Any] = {
        "weights": config.weights,
        "dtype": getattr(torch, config.foundation_dtype),
        "allow_pickle": allow_pickle,
    }
    is_random = config.weights == "random"
    if semantic is None:
        # Not after gigabytes of the diffusion branch.
        refuse_unavailable(config.semantic.source, config.weights)
    # Random foundations are always drawn on the CPU: the same ones on every device.
    build_device = device if device.type == "meta" else torch.device("cpu")
    with build_device, torch.random.fork_rng(devices=[], enabled=is_random):
        if is_random:
            torch.default_generator.manual_seed(config.random_seed)
        if diffusion is None:
            diffusion = load_diffusion(config.diffusion, config.taps, **options).to(device)
        elif is_random and semantic is None:
            # The semantic branch is drawn after it, and must not depend on who drew it.
            skip_random_weights(diffusion)
        if semantic is None:
            semantic = load_semantic(config.semantic, **options).to(device)
    return diffusion, semantic


def injection_sites(config: EncoderConfig, blocks: Sequence[Block]) -> dict[str, int]:
    """Channels of every block that tokens are added to, by name.

    Raises:
        ValueError: A site is configured that is none of ``blocks``.
    """
    channels = {block.name: block.channels for block in blocks}
    wanted = config.injection.sites
    if wanted is None:
        return {name: count for name, count in channels.items() if name != "mid"}
    unknown = [name for name in wanted if name not in channels]
    if unknown:
        raise ValueError(
            f"unknown injection site(s) {', '.join(unknown)}; blocks that run in this UNet are "
            f"{', '.join(channels)}."
        )
    return {name: count for name, count in channels.items() if name in wanted}


def build_aggregator(
    aggregation: AggregationConfig, in_channels: Sequence[int]
) -> AdaptiveAggregation | AdaptivePyramid:
    """Aggregation of levels with these channels."""
    options: dict[str, Any] = {
        "out_channels": aggregation.out_channels,
        "bottleneck_channels": aggregation.bottleneck,
        "norm_groups": aggregation.norm_groups,
        "normalize": aggregation.normalize,
        "dropout": aggregation.dropout,
    }
    if isinstance(aggregation.stride, int):
        return AdaptiveAggregation(in_channels, **options)
    return AdaptivePyramid(in_channels, aggregation.stride, **options)


def checkpoint_blocks(
    diffusion: Diffusion, semantic: SemanticBranch, enable: bool, frozen: bool
) -> None:
    """Switch gradient checkpointing of the foundations.

    Args:
        diffusion: Diffusion branch.
        semantic: Semantic branch; one without a ``model`` is passed over.
        enable: Recompute activations in backward.
        frozen: Gradient enters the UNet alone.
    """
    from diffusers import AutoencoderTiny

    modules: list[Any] = [diffusion.denoiser.unet]
    # Checkpointed, diffusers' AutoencoderTiny forgets to move -1..1 to the 0..1 that it was trained
    # on (0.42); and it is small.
    if not frozen and not isinstance(diffusion.vae, AutoencoderTiny):
        modules.append(diffusion.vae)
    for module in modules:
        if enable:
            module.enable_gradient_checkpointing(_recompute)
        else:
            module.disable_gradient_checkpointing()
    model = getattr(semantic, "model", None)
    if frozen or model is None:
        return
    if hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(enable)
        return
    # transformers 5.24 has renamed both; the former names end with version 6.
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if enable:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{name}_checkpointing_disable")()


def _recompute(block: nn.Module, *inputs: Any) -> Any:
    """What diffusers does by default, as a function that can be pickled with its model."""
    return torch.utils.checkpoint.checkpoint(block.__call__, *inputs, use_reentrant=False)
