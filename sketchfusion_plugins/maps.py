"""Every map that fusion goes through, by name: what pictures and spectra are made of."""

from __future__ import annotations

from torch import Tensor

from sketchfusion_plugins.encoder import FeatureLevels, SketchFusionEncoder

AGGREGATED = "aggregated"


def all_maps(
    encoder: SketchFusionEncoder, image: Tensor, *, seed: int | None = None
) -> dict[str, Tensor]:
    """Levels of Stable Diffusion, CLIP's tokens, fused levels and what they are aggregated to.

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
    maps = _named("SD", encoder.forward_levels(image, seed=seed, fuse=False))
    maps["CLIP"] = encoder.forward_tokens(image)
    fused = encoder.forward_levels(image, seed=seed)
    maps |= _named("fused", fused)
    if encoder.config.aggregation is not None:
        found = encoder.aggregate(fused, (image.shape[-2], image.shape[-1]))
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
