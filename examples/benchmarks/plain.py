"""The released recipe and the floor: plain diffusers and transformers calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from models import Models
from timing import Row
from torch import Tensor, nn

from sketchfusion_plugins.encoder import FeatureLevels, SketchFusionEncoder
from sketchfusion_plugins.noise import draw_noise
from sketchfusion_plugins.semantic import resize_for_tokens

DRAWS = 32
# As many as fit into memory at once here; the released code runs all of them together.
CHUNK = 8


class _LastTap(Exception):  # noqa: N818  (a signal, not an error)
    """Leaves a UNet's forward pass once all that is wanted is there."""


def recipe(fp32: Models, draws: int = DRAWS) -> list[Row]:
    """Rows (a) and (b): plain diffusers and transformers calls, one image at a time."""
    encoder = fp32.encoder
    parts = (fp32.whole_unet, fp32.text, encoder.diffusion.vae)
    parts = (*parts, encoder.semantic, encoder.injector, encoder.aggregator)
    return [
        Row("a", f"released recipe, {draws} draws", _released(fp32, draws, False), parts),
        Row("b", "the same, 1 draw, whole UNet", _released(fp32, 1, True), parts),
        Row("b2", "the same, 1 draw, left after the last tap", _released(fp32, 1, False), parts),
    ]


def floors(fp32: Models, bf16: Models) -> list[Row]:
    """Row (f): the parts alone, called directly."""
    rows = []
    for key, models, precision in (("f", fp32, "float32"), ("f2", bf16, "bfloat16")):
        encoder = models.encoder
        parts = (encoder.diffusion, encoder.semantic)
        rows.append(Row(key, f"floor, {precision}", _floor(models), parts, precision))
    return rows


def plain_levels(models: Models, image: Tensor, whole: bool = True) -> dict[str, Tensor]:
    """Fused levels by name, from plain calls with one draw."""
    return _plain(models, image, 1, whole)


def _released(models: Models, draws: int, whole: bool) -> Callable[[Tensor], Any]:
    def run(image: Tensor) -> Any:
        models.text(models.tokens)
        outputs = _plain(models, image, draws, whole)
        blocks = models.encoder.level_blocks
        maps = tuple(outputs[block.name] for block in blocks)
        strides = tuple(block.stride for block in blocks)
        levels = FeatureLevels(maps, strides, tuple(block.name for block in blocks))
        return models.encoder.aggregate(levels, (image.shape[-2], image.shape[-1]))

    return run


def _plain(models: Models, image: Tensor, draws: int, whole: bool) -> dict[str, Tensor]:
    """Fused levels of one image: copies of it through VAE and UNet, as the released code does."""
    encoder = models.encoder
    tokens = _tokens(encoder, image)
    projections = encoder.injector.projections

    def add(name: str, hidden: Tensor) -> None:
        if name in projections:
            size = hidden.shape[-2:]
            hidden += F.interpolate(projections[name](tokens), size, mode="bilinear")

    latents = _latents(models, image)
    noise = draw_noise(latents, draws, encoder.config.diffusion.seed)
    totals: dict[str, Tensor] = {}
    for chunk in noise.split(CHUNK):
        copies = image.expand(len(chunk), -1, -1, -1)
        noisy = _noisy(models, _latents(models, copies) if draws > 1 else latents, chunk)
        for name, output in _call_unet(models, noisy, add, whole).items():
            total = output.sum(0, keepdim=True)
            totals[name] = totals[name] + total if name in totals else total
    return {name: total / draws for name, total in totals.items()}


def _tokens(encoder: SketchFusionEncoder, image: Tensor) -> Tensor:
    shrink = encoder.config.semantic.shrink
    return encoder.semantic(resize_for_tokens(image, encoder.semantic, shrink))


def _floor(models: Models) -> Callable[[Tensor], Any]:
    def run(image: Tensor) -> Any:
        encoder = models.encoder
        tokens = _tokens(encoder, image)
        latents = _latents(models, image.contiguous(memory_format=torch.channels_last))
        noise = draw_noise(latents, 1, encoder.config.diffusion.seed)
        return tokens, _call_unet(models, _noisy(models, latents, noise), None, False)

    return run


def _latents(models: Models, image: Tensor) -> Tensor:
    vae: Any = models.encoder.diffusion.vae
    output = vae.encode(image.to(vae.dtype))
    latents = output.latents if hasattr(output, "latents") else output.latent_dist.mode()
    return latents.float().contiguous() * vae.config.scaling_factor


def _noisy(models: Models, latents: Tensor, noise: Tensor) -> Tensor:
    step = torch.tensor([models.encoder.config.diffusion.timestep], device=latents.device)
    noisy: Tensor = models.scheduler.add_noise(latents, noise.expand_as(latents), step)
    return noisy


def _call_unet(
    models: Models, noisy: Tensor, add: Callable[[str, Tensor], None] | None, whole: bool
) -> dict[str, Tensor]:
    """Block outputs at the taps, read by hooks on diffusers' own forward pass."""
    unet: Any = models.whole_unet
    denoiser = models.encoder.diffusion.denoiser
    blocks = {f"down{index}": block for index, block in enumerate(unet.down_blocks)}
    if unet.mid_block is not None:
        blocks["mid"] = unet.mid_block
    blocks |= {f"up{index}": block for index, block in enumerate(unet.up_blocks)}
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def read(_: nn.Module, __: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if add is not None:
                add(name, hidden)
            if name in denoiser.taps:
                # The next block may write into it.
                outputs[name] = hidden.clone() if whole else hidden
            if not whole and name == denoiser.taps[-1]:
                raise _LastTap

        return read

    handles = [block.register_forward_hook(hook(name)) for name, block in blocks.items()]
    prompt = denoiser.null_embedding.expand(len(noisy), -1, -1)
    try:
        unet(noisy.to(unet.dtype), denoiser.timestep, prompt)
    except _LastTap:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return outputs
