"""The frozen diffusion branch: VAE encoder, seeded noise, and the denoiser's one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sketchfusion_plugins.config import LARGEST_SEED, DiffusionConfig
from sketchfusion_plugins.denoiser import Denoiser, Inject, default_taps, list_blocks
from sketchfusion_plugins.hub import (
    DIFFUSERS_LAYOUT,
    bundled_weights,
    explain_loading,
    fetch_file,
    read_architecture,
    read_json,
    refuse_unavailable,
    require_weights,
    without_advice,
)
from sketchfusion_plugins.images import per_channel, refuse_overflow
from sketchfusion_plugins.noise import as_integer, draw_noise, noise_scales

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

# The posterior's sample and the diffusion noise must not be the same numbers.
POSTERIOR_SEED_OFFSET = 1_000_003


class Diffusion(nn.Module):
    """Image in, UNet block outputs after one denoising step out.

    Args:
        config: What to add and how often.
        vae: Autoencoder; its decoder is deleted.
        unet: UNet; what runs after the last tap is deleted.
        scheduler: Scheduler config, for the noise schedule.
        null_embedding: Embedding of the empty prompt, ``[1, length, width]``.
        taps: Blocks to return; None for the default ones.
    """

    def __init__(
        self,
        config: DiffusionConfig,
        vae: AutoencoderKL | AutoencoderTiny,
        unet: UNet2DConditionModel,
        scheduler: Mapping[str, Any],
        null_embedding: Tensor,
        taps: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.scaling_factor = float(vae.config["scaling_factor"])
        self.shift_factor = float(vae.config.get("shift_factor") or 0.0)
        self.latents_mean = tuple(map(float, vae.config.get("latents_mean") or ()))
        self.latents_std = tuple(map(float, vae.config.get("latents_std") or ()))
        self.latent_stride = 2 ** (len(_encoder_widths(vae.config)) - 1)
        latent_channels = vae.config["latent_channels"]
        if unet.config["in_channels"] != latent_channels:
            raise ValueError(
                f"this UNet takes {unet.config['in_channels']} channels, its VAE gives "
                f"{latent_channels}. Inpainting, depth and editing UNets are not supported; use "
                "the text-to-image one."
            )
        self.signal_scale, self.noise_scale = noise_scales(scheduler, config.timestep)
        # Blocks are listed first: an unsupported UNet is refused before anything is cut from it.
        blocks = list_blocks(unet.config, self.latent_stride)
        self.vae = vae
        del vae.decoder
        if hasattr(vae, "post_quant_conv"):
            del vae.post_quant_conv
        self.denoiser = Denoiser(
            unet,
            null_embedding,
            config.timestep,
            default_taps(blocks) if taps is None else taps,
            self.latent_stride,
        )

    def encode(
        self,
        image: Tensor,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Clean latents of an image.

        Args:
            image: ``[B, 3, H, W]`` in -1..1, sides divisible by the latent stride.
            seed: Seed of the posterior's sample, if one is configured; None for the configured one.
            generator: Generator that replaces the seed; a sample advances it.

        Returns:
            Scaled latents ``[B, C, H / 8, W / 8]``, float32.
        """
        # Autoencoders are all convolutions, which run faster on CPUs with channels innermost; the
        # UNet, half of it attention, does not. On GPUs group norms give them back outermost.
        # Of a replica of nn.DataParallel, diffusers' own `dtype` may fail.
        weight = next(
            w for m in self.vae.modules() if (w := getattr(m, "weight", None)) is not None
        )
        pixels = image.to(weight.dtype)
        if pixels.device.type == "cpu":
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        output = self.vae.encode(pixels)
        if hasattr(output, "latents"):
            latents: Tensor = output.latents.float()
        elif self.config.posterior == "mode":
            latents = output.latent_dist.mode().float()
        else:
            posterior = output.latent_dist
            seed = as_integer(self.config.seed if seed is None else seed)
            # Of the largest seeds the sum would be none: it starts again at the lowest.
            other = seed + POSTERIOR_SEED_OFFSET
            other -= 2 * (LARGEST_SEED + 1) * (other > LARGEST_SEED)
            noise = draw_noise(posterior.mean, 1, other, generator)
            latents = posterior.mean.float() + posterior.std.float() * noise
        if self.latents_mean and self.latents_std:
            # As in diffusers' image-to-image pipeline of SDXL.
            statistics = (self.latents_mean, self.latents_std)
            mean, std = (per_channel(values, latents) for values in statistics)
            scaled: Tensor = (latents - mean) * self.scaling_factor / std
            return scaled.contiguous()
        return ((latents - self.shift_factor) * self.scaling_factor).contiguous()

    def forward(
        self,
        image: Tensor,
        inject: Inject | None = None,
        inject_skips: bool = True,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Block outputs at the taps, averaged over the noise ensemble.

        Args:
            image: ``[B, 3, H, W]`` in -1..1, sides divisible by the latent stride.
            inject: See `Denoiser.forward`; it sees batches of ``B * draws``, draws innermost.
            inject_skips: See `Denoiser.forward`.
            seed: Seed of this call's noise; None for the configured one.
            generator: Generator that replaces the seed; it is advanced.

        Returns:
            Output of every tap by name, ``[B, C, h, w]``: float32 for an ensemble, otherwise in the
            precision that the UNet computed in.

        Raises:
            ValueError: A draw of an ensemble overflows float16; see `images.refuse_overflow`.
        """
        latents = self.encode(image, seed, generator)
        return self.denoise(latents, inject, inject_skips, seed, generator)

    def denoise(
        self,
        latents: Tensor,
        inject: Inject | None = None,
        inject_skips: bool = True,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """`forward` from the clean latents ``[B, C, H / 8, W / 8]`` of `encode` on."""
        if self.config.noise_free:
            outputs: dict[str, Tensor] = self.denoiser(latents, inject, inject_skips)
            return outputs
        seed = self.config.seed if seed is None else seed
        draws = self.config.ensemble
        noise = draw_noise(latents, draws, seed, generator) * self.noise_scale
        signal = latents * self.signal_scale
        if draws == 1:
            outputs = self.denoiser(signal + noise, inject, inject_skips)
            return outputs
        batch = latents.shape[0]
        totals: dict[str, Tensor] = {}
        for chunk in noise.split(self.config.ensemble_chunk):
            noisy = (signal[:, None] + chunk[None]).flatten(0, 1)
            outputs = self.denoiser(noisy, inject, inject_skips)
            # The sum is float32, which does not tell what overflowed on the way.
            refuse_overflow(list(outputs.values()))
            for name, output in outputs.items():
                total = output.unflatten(0, (batch, len(chunk))).float().sum(1)
                totals[name] = totals[name] + total if name in totals else total
        return {name: total / draws for name, total in totals.items()}


def load_diffusion(
    config: DiffusionConfig,
    taps: Sequence[str] | None = None,
    *,
    weights: str = "pretrained",
    dtype: torch.dtype = torch.float32,
    allow_pickle: bool = False,
) -> Diffusion:
    """Build the branch from the package, the hub, a local folder, or with random weights.

    Random weights come from the global random state; `SketchFusionEncoder` seeds it.

    Raises:
        OSError: Something cannot be loaded; the message says what and how to mend it.
        ValueError: The model is of a kind that is not supported.
    """
    refuse_unavailable(config.source, weights)
    if weights == "random":
        return _build_random(config, taps, dtype)
    from diffusers import UNet2DConditionModel
    from diffusers.utils import logging
    from huggingface_hub.constants import is_offline_mode

    from sketchfusion_plugins.null_prompt import load_null_embedding

    options: dict[str, Any] = {
        "revision": config.revision,
        # diffusers itself would ask the hub for the names of a UNet's shards.
        "local_files_only": is_offline_mode(),
        "variant": config.variant,
        "torch_dtype": dtype,
        "use_safetensors": None if allow_pickle else True,
        "output_loading_info": True,
    }
    # The branch keeps the id: a packaged folder lies elsewhere in every installation.
    place = replace(config, source=str(bundled_weights(config.source) or config.source))
    with explain_loading("UNet", place.source, config.revision, DIFFUSERS_LAYOUT, config.variant):
        # First of all, since it says what is lacking where diffusers does not.
        architecture = _load_config(place, "unet", "config.json")
        if config.unet_file is not None:
            # Weights of its own: the source's are not even downloaded.
            with torch.device("meta"):
                unet = UNet2DConditionModel.from_config(architecture)
        else:
            unet, loaded = UNet2DConditionModel.from_pretrained(
                place.source, subfolder="unet", **options
            )
            require_weights(loaded["missing_keys"])
    if config.unet_file is not None:
        _load_weights(unet, config.unet_file, dtype)
    with explain_loading("VAE", place.source, config.revision, DIFFUSERS_LAYOUT, config.variant):
        vae_class = _vae_class(_load_config(place, "vae", "config.json"))
        with without_advice(logging):
            vae, loaded = vae_class.from_pretrained(place.source, subfolder="vae", **options)
        decoder = ("decoder.", "post_quant_conv.")
        require_weights(name for name in loaded["missing_keys"] if not name.startswith(decoder))
    with explain_loading("scheduler", place.source, config.revision, DIFFUSERS_LAYOUT):
        scheduler = _load_config(place, "scheduler", "scheduler_config.json")
    null_embedding = load_null_embedding(place, unet.config, allow_pickle=allow_pickle)
    return Diffusion(config, vae, unet, scheduler, null_embedding.to(dtype), taps).eval()


def skip_random_weights(branch: Diffusion) -> None:
    """Take as many random numbers as `load_diffusion` takes for a branch like this one."""
    from diffusers.utils import logging

    with without_advice(logging):
        for model in (branch.denoiser.unet, branch.vae):
            model.from_config(model.config)
    torch.randn(branch.denoiser.null_embedding.shape)


def _build_random(
    config: DiffusionConfig, taps: Sequence[str] | None, dtype: torch.dtype
) -> Diffusion:
    from diffusers import UNet2DConditionModel

    folder = Path(config.source)
    if folder.is_dir():
        architecture: dict[str, Any] = {
            "unet": read_json(folder / "unet" / "config.json"),
            "vae": read_json(folder / "vae" / "config.json"),
            "scheduler": read_json(folder / "scheduler" / "scheduler_config.json"),
        }
    else:
        architecture = read_architecture(config.source)
    unet = UNet2DConditionModel.from_config(architecture["unet"])
    vae = _vae_class(architecture["vae"]).from_config(architecture["vae"])
    # Text encoders end in a LayerNorm: unit variance stands in for the null prompt's embedding.
    length = architecture.get("null_prompt_length", 77)
    null_embedding = torch.randn(1, length, unet.config["cross_attention_dim"])
    branch = Diffusion(config, vae, unet, architecture["scheduler"], null_embedding, taps)
    return branch.to(dtype).eval()


def _load_config(config: DiffusionConfig, subfolder: str, filename: str) -> dict[str, Any]:
    folder = Path(config.source)
    if folder.is_dir():
        return read_json(folder / subfolder / filename)
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(config.source, filename, subfolder=subfolder, revision=config.revision)
    return read_json(Path(path))


def _vae_class(config: Mapping[str, Any]) -> type[AutoencoderKL] | type[AutoencoderTiny]:
    from diffusers import AutoencoderKL, AutoencoderTiny

    classes = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    name = config.get("_class_name")
    if name not in classes:
        raise ValueError(f"VAE class {name!r} is not supported; use {' or '.join(classes)}.")
    chosen: type[AutoencoderKL] | type[AutoencoderTiny] = classes[name]
    return chosen


def _encoder_widths(config: Mapping[str, Any]) -> Sequence[int]:
    widths: Sequence[int] = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return widths


def _load_weights(unet: nn.Module, location: str, dtype: torch.dtype) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = fetch_file(location)
    try:
        weights = {name: values.to(dtype) for name, values in load_file(path).items()}
        unet.load_state_dict(weights, strict=True, assign=True)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise OSError(
            f"{location!r} does not hold weights of this UNet: {reason} "
            "Choose the source that the weights were made for."
        ) from error
