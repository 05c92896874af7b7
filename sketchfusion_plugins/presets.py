"""Named configurations."""

from __future__ import annotations

from sketchfusion_plugins.config import (
    AggregationConfig,
    DiffusionConfig,
    EncoderConfig,
    InjectionConfig,
    SemanticConfig,
)

STABLE_DIFFUSION_15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
BK_SDM_V2_SMALL = "nota-ai/bk-sdm-v2-small"
CLIP_VIT_BASE_16 = "openai/clip-vit-base-patch16"
TINY_DIFFUSION = "sketchfusion/tiny-diffusion"
TINY_VIT = "vit_tiny_conv16_128"

PRESETS: dict[str, EncoderConfig] = {
    "paper": EncoderConfig(),
    "official": EncoderConfig(
        diffusion=DiffusionConfig(ensemble=32, posterior="sample"),
        injection=InjectionConfig(init="official"),
        aggregation=AggregationConfig(normalize=True, dropout=0.5),
    ),
    "sd15": EncoderConfig(diffusion=DiffusionConfig(source=STABLE_DIFFUSION_15)),
    "cleandift": EncoderConfig(
        diffusion=DiffusionConfig(
            unet_file="CompVis/cleandift/cleandift_sd21_unet.safetensors",
            noise_free=True,
            # The constant that its authors' training and extraction tell the UNet (`t_init`).
            timestep=261,
        )
    ),
    "small": EncoderConfig(
        diffusion=DiffusionConfig(source=BK_SDM_V2_SMALL),
        semantic=SemanticConfig(source=CLIP_VIT_BASE_16),
        aggregation=AggregationConfig(out_channels=768),
    ),
    "tiny": EncoderConfig(
        # Best of five on concepts that training had seen: examples/pretrain_tiny/timesteps.py.
        diffusion=DiffusionConfig(source=TINY_DIFFUSION, timestep=300),
        semantic=SemanticConfig(source=TINY_VIT, kind="timm", final_norm=True, shrink=False),
        aggregation=AggregationConfig(out_channels=192, norm_groups=16),
    ),
}
"""Named configurations. ``paper`` follows the paper's text; ``official`` differs from it where the
released code does (32 noise draws, sampled posterior, default convolution init, dropout,
normalised output), without that code's faults."""


def preset(name: str) -> EncoderConfig:
    """Configuration by name.

    Raises:
        ValueError: Unknown name; the message lists the valid ones.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
