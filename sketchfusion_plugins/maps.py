"""Every map that fusion goes through, by name: what pictures and spectra are made of."""

from __future__ import annotations

from torch import Tensor

from sketchfusion_plugins.encoder import FeatureLevels, SketchFusionEncoder

DIFFUSION = "SD"
CLIP = "CLIP"
FUSED = "fused"
AGGREGATED = "aggregated"


def all_maps(
    encoder: SketchFusionEncoder, image: Tensor, *, seed: int | None = None
) -> dict[str, Tensor]:
    """Levels of Stable Diffusion, CLIP's tokens, fused levels and what they are aggregated to.

    VAE and CLIP run once, the UNet twice: with and without injected tokens.

    Args:
        encoder: The encoder.
        image: ``[B, in_channels, H, W]`` in -1..1.
        seed: Seed of the noise; None for the configured one.

    Returns:
        ``[B, C, h, w]``, each at its own grid, by "SD, stride 8", ..., "CLIP", "fused, stride 8",
        ..., "aggregated"; for a pyramid "aggregated, stride 8", ... Levels of one stride are told
        apart by their blocks; an encoder without aggregation has no aggregated map.

    Raises:
        TypeError, ValueError: See `sketchfusion_plugins.images.check_image`.
    """
    encoded = encoder.encode(image, seed=seed)
    tokens = encoded.tokens
    maps = _named(DIFFUSION, encoder.forward_levels(encoded, seed=seed, fuse=False))
    # Where nothing is injected, nothing has asked for tokens yet.
    maps[CLIP] = encoder.forward_tokens(image) if tokens is None else tokens.to(encoder.dtype)
    fused = encoder.forward_levels(encoded, seed=seed)
    maps |= _named(FUSED, fused)
    if encoder.config.aggregation is not None:
        found = encoder.aggregate(fused, encoded.image_size)
        strides = encoder.config.aggregation.stride
        if isinstance(found, Tensor):
            maps[AGGREGATED] = found
        else:
            assert not isinstance(strides, int)
            for stride, own in zip(strides, found, strict=True):
                maps[f"{AGGREGATED}, stride {stride}"] = own
    return maps


def _named(part: str, levels: FeatureLevels) -> dict[str, Tensor]:
    unique = len(set(levels.strides)) == len(levels.strides)
    return {
        f"{part}, stride {stride}" if unique else f"{part}, {block}, stride {stride}": own
        for own, stride, block in zip(*levels, strict=True)
    }
