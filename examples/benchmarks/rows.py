"""Ours, ours with optimisations off, training, other backbones and the machine itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from models import OTHERS, Models, build_other, variant
from timing import Row
from torch import Tensor

from sketchfusion_plugins.encoder import FeatureLevels

FEW_DRAWS = 4


def ours(fp32: Models, bf16: Models) -> list[Row]:
    """Rows (c) and (d): the encoder as it is shipped."""
    held, whole = bf16.encoder, _all_bfloat16(bf16)
    return [
        Row("c", "ours, float32", fp32.encoder, (fp32.encoder,)),
        Row("d", "ours, foundations held in bfloat16", held, (held,), "bfloat16"),
        Row("d2", "ours, all in bfloat16", whole, (whole,), "bfloat16"),
    ]


def compiled(fp32: Models, bf16: Models, smoke: bool) -> list[Row]:
    """Row (k): (c) and (d) as `torch.compile` makes them."""
    # Every size, batch and precision compiles the same code anew, up to a limit.
    torch.compiler.reset()
    backend = "eager" if smoke else "inductor"
    rows = []
    for key, title, models in (("k1", "(c) compiled", fp32), ("k2", "(d) compiled", bf16)):
        encoder = models.encoder
        run = torch.compile(encoder, backend=backend)
        precision = "float32" if models is fp32 else "bfloat16"
        rows.append(Row(key, title, run, (encoder,), precision, compiled=True))
    return rows


def without(fp32: Models, bf16: Models, light_vae: bool) -> list[Row]:
    """Row (e): (d) with each optimisation off in turn, and diffusers' fused QKV."""
    encoder = bf16.encoder
    denoiser = encoder.diffusion.denoiser
    last = f"up{denoiser.num_up_blocks - 1}"
    late = variant(bf16, taps=(*denoiser.taps, last))
    names = [block.name for block in encoder.level_blocks]

    def whole_unet(image: Tensor) -> Any:
        levels = late.forward_levels(image)
        chosen = [levels.names.index(name) for name in names]
        kept = FeatureLevels(*(tuple(part[i] for i in chosen) for part in levels))
        return encoder.aggregate(kept, (image.shape[-2], image.shape[-1]))

    def prompt_each_time(image: Tensor) -> Any:
        bf16.text(bf16.tokens)
        return encoder(image)

    def graph(image: Tensor) -> Any:
        with _unfrozen(encoder):
            return encoder(image)

    def autocast(image: Tensor) -> Any:
        with torch.autocast(image.device.type, torch.bfloat16):
            return fp32.encoder(image)

    def channels_outside(image: Tensor) -> Any:
        with _contiguous_vae(encoder.diffusion.vae):
            return encoder(image)

    def plain_attention(image: Tensor) -> Any:
        with _attention_without_sdpa(denoiser.unet):
            return encoder(image)

    batched, single = (
        variant(bf16, diffusion__ensemble=FEW_DRAWS, diffusion__ensemble_chunk=chunk)
        for chunk in (FEW_DRAWS, 1)
    )
    fused = variant(bf16)
    fused.diffusion.denoiser.unet.fuse_qkv_projections()
    dtype = "bfloat16"
    rows = [
        Row("e1", "(d) without early exit", whole_unet, (late,), dtype),
        Row(
            "e2",
            "(d), null prompt encoded each call",
            prompt_each_time,
            (encoder, bf16.text),
            dtype,
        ),
        Row("e3", "(d) under autocast instead of held", autocast, (fp32.encoder,), dtype),
        Row("e4", "(d), VAE with channels outermost", channels_outside, (encoder,), dtype),
        Row("e5", "(d) keeping a graph", graph, (encoder,), dtype, grad=True),
        Row("e6", "(d), attention without SDPA", plain_attention, (encoder,), dtype),
        Row("e7", f"(d), levels of {FEW_DRAWS} draws", batched.forward_levels, (batched,), dtype),
        Row("e8", "(e7), draws one by one", single.forward_levels, (single,), dtype),
        Row("e9", "levels of (d), fused QKV", fused.forward_levels, (fused,), dtype),
        Row("e0", "levels of (d), nothing off", encoder.forward_levels, (encoder,), dtype),
    ]
    if light_vae:
        rows.append(_light_vae(bf16))
    return rows


def training(fp32: Models, bf16: Models) -> list[Row]:
    """One step of adapter training, with and without checkpointing: for its memory."""
    rows = []
    for number, (models, precision) in enumerate(((fp32, "float32"), (bf16, "bfloat16"))):
        for checkpointing in (True, False):
            key = f"t{2 * number + 1 + (not checkpointing)}"
            title = f"training step, {precision}, {'' if checkpointing else 'no '}checkpointing"
            step = _step(models, checkpointing)
            rows.append(Row(key, title, step, (models.encoder,), precision, True))
    return rows


def others(model: str, size: int, batch: int, device: torch.device) -> list[Row]:
    """Row (g): plain timm models with random weights, at the nearest size that they take."""
    rows = []
    for number, (title, name) in enumerate(OTHERS[model].items()):
        network, side = build_other(name, size, device)
        image = torch.zeros(batch, 3, side, side, device=device)
        for precision in ("float32", "bfloat16"):
            dtype = getattr(torch, precision)
            held = deepcopy(network).to(dtype) if precision == "bfloat16" else network
            given = image.to(dtype)

            def run(_: Tensor, held: Any = held, given: Tensor = given) -> Any:
                return held.forward_features(given)

            key = f"g{2 * number + 1 + (precision == 'bfloat16')}"
            rows.append(Row(key, f"{title}, {precision}, {side} px", run, (held,), precision))
    return rows


def machine(device: torch.device, smoke: bool) -> list[Row]:
    """Row (h): matrix multiply and convolution at sizes that suit the machine."""
    side = 256 if smoke else 8192 if device.type == "cuda" else 2048
    cells, channels = (16, 64) if smoke else (128, 512) if device.type == "cuda" else (84, 512)
    rows = []
    for number, precision in enumerate(("float32", "bfloat16")):
        dtype = getattr(torch, precision)
        matrix = torch.randn(side, side, device=device).to(dtype)
        image = torch.randn(1, channels, cells, cells, device=device).to(dtype)
        weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype)

        def multiply(_: Tensor, matrix: Tensor = matrix) -> Tensor:
            return matrix @ matrix

        def convolve(_: Tensor, image: Tensor = image, weight: Tensor = weight) -> Tensor:
            return F.conv2d(image, weight, padding=1)

        key = 2 * number + 1
        flops = 2 * 9 * channels**2 * cells**2
        rows += [
            Row(
                f"h{key}",
                f"matrix multiply, {precision}",
                multiply,
                precision=precision,
                flops=2 * side**3,
            ),
            Row(
                f"h{key + 1}",
                f"convolution, {precision}",
                convolve,
                precision=precision,
                flops=flops,
            ),
        ]
    return rows


def _all_bfloat16(models: Models) -> Any:
    encoder = models.encoder
    result = variant(models)
    result.config = encoder.config
    result.injector = deepcopy(encoder.injector).bfloat16()
    result.aggregator = deepcopy(encoder.aggregator)
    if result.aggregator is not None:
        result.aggregator.bfloat16()
    return result


def _light_vae(models: Models) -> Row:
    from diffusers import AutoencoderTiny

    light = variant(models)
    light.config, light.aggregator = models.encoder.config, models.encoder.aggregator
    vae = AutoencoderTiny().bfloat16().to(next(models.text.parameters()).device)
    vae.requires_grad_(False).eval()
    del vae.decoder
    light.diffusion.vae = vae
    title = "(d) with a light VAE of TAESD's shape"
    return Row("l", title, light, (light,), "bfloat16")


def _step(models: Models, checkpointing: bool) -> Callable[[Tensor], None]:
    def run(image: Tensor) -> None:
        encoder = models.encoder
        trained = [p for p in encoder.parameters() if p.requires_grad]
        # Nothing learns, so that later rows still see the same weights.
        optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
        encoder.train()
        encoder.set_grad_checkpointing(checkpointing)
        try:
            encoder(image).square().mean().backward()
            optimizer.step()
        finally:
            encoder.set_grad_checkpointing(False)
            encoder.eval()
            optimizer.zero_grad()

    return run


@contextmanager
def _unfrozen(encoder: Any) -> Iterator[None]:
    parts = encoder.foundations()
    for part in parts:
        part.requires_grad_(True)
    try:
        yield
    finally:
        for part in parts:
            part.requires_grad_(False)


@contextmanager
def _contiguous_vae(vae: Any) -> Iterator[None]:
    encode = vae.encode
    vae.encode = lambda pixels: encode(pixels.contiguous())
    try:
        yield
    finally:
        del vae.encode


@contextmanager
def _attention_without_sdpa(unet: Any) -> Iterator[None]:
    from diffusers.models.attention_processor import AttnProcessor

    processors = dict(unet.attn_processors)
    unet.set_attn_processor(AttnProcessor())
    try:
        yield
    finally:
        unet.set_attn_processor(processors)
