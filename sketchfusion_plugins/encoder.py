"""The fused encoder: image in, levels or an aggregated map out.

    image -> VAE latents, CLIP tokens
          -> latents + seeded noise -> UNet blocks, each followed by injected tokens
          -> levels (strides 8, 16, 32) -> adaptive aggregation -> one map, or a pyramid

Only injection and aggregation train. The foundations are frozen, which is not the same as running
without a graph: gradient crosses the frozen UNet from the levels back to every injection.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sketchfusion_plugins.adapter_file import read_config
from sketchfusion_plugins.aggregation import AdaptivePyramid, cells
from sketchfusion_plugins.assembly import (
    adopt_branch,
    build_aggregator,
    checkpoint_blocks,
    injection_sites,
    load_foundations,
)
from sketchfusion_plugins.checkpoint import (
    forgetting_what_goes,
    load_adapters,
    sample_foundations,
    save_adapters,
)
from sketchfusion_plugins.config import EncoderConfig
from sketchfusion_plugins.denoiser import Block
from sketchfusion_plugins.diffusion import Diffusion
from sketchfusion_plugins.foundation_settings import refuse_lost_activations
from sketchfusion_plugins.images import check_image, pad_to_multiple, refuse_overflow, to_rgb
from sketchfusion_plugins.injection import ClipInjector
from sketchfusion_plugins.outputs import FeatureLevels, FoundationOutputs
from sketchfusion_plugins.publish import push_adapters
from sketchfusion_plugins.semantic import SemanticBranch, resize_for_tokens
from sketchfusion_plugins.summary import ParameterCount, count_parameters

__all__ = ["FeatureLevels", "FoundationOutputs", "SketchFusionEncoder"]


class SketchFusionEncoder(nn.Module):
    """Stable Diffusion and CLIP, fused (SketchFusion, CVPR 2025).

    Args:
        config: What to build; `sketchfusion_plugins.preset` gives named ones.
        allow_pickle: Accept pickled foundation weights where no safetensors exist. Only for
            sources that you trust: unpickling runs code.
        diffusion: Ready diffusion branch instead of the configured one. It stays on its device,
            and the encoder's configuration takes its settings and taps.
        semantic: Ready semantic branch instead of the configured one. It stays on its device.

    Raises:
        OSError: Foundations cannot be loaded.
        ValueError: The configuration does not fit the foundations, or names other taps than a
            ready diffusion branch returns.

    Example:
        >>> import torch
        >>> from sketchfusion_plugins import SketchFusionEncoder, preset
        >>> encoder = SketchFusionEncoder(preset("tiny")).eval()
        >>> encoder(torch.zeros(1, 3, 96, 64)).shape
        torch.Size([1, 192, 12, 8])
    """

    diffusion: Diffusion

    def __init__(
        self,
        config: EncoderConfig | None = None,
        *,
        allow_pickle: bool = False,
        diffusion: Diffusion | None = None,
        semantic: SemanticBranch | None = None,
    ) -> None:
        super().__init__()
        self.config = config = adopt_branch(config or EncoderConfig(), diffusion)
        self.diffusion, self.semantic = load_foundations(config, allow_pickle, diffusion, semantic)
        self.injector = ClipInjector(
            self.semantic.channels,
            injection_sites(config, self.diffusion.denoiser.blocks),
            config.injection.init,
        )
        channels = [block.channels for block in self.level_blocks]
        self.aggregator = (
            None if config.aggregation is None else build_aggregator(config.aggregation, channels)
        )
        if config.freeze_foundations:
            for foundation in self.foundations():
                foundation.requires_grad_(False)
        self.foundation_samples = sample_foundations(self)
        self.holds_trained_foundations = False
        self.train(self.training)

    @property
    def level_blocks(self) -> tuple[Block, ...]:
        """UNet blocks whose outputs are the levels, fine to coarse."""
        denoiser = self.diffusion.denoiser
        tapped = [block for block in denoiser.blocks if block.name in denoiser.taps]
        return tuple(sorted(tapped, key=lambda block: block.stride))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the adapters, and so of what the encoder returns."""
        # Replicas of nn.DataParallel have weights as plain attributes and no parameters.
        adapters = (part for part in (self.injector, self.aggregator) if part is not None)
        weights = (getattr(m, "weight", None) for part in adapters for m in part.modules())
        weight = next((w for w in weights if w is not None), None)
        return torch.float32 if weight is None else weight.dtype

    def foundations(self) -> tuple[nn.Module, ...]:
        """Diffusion and semantic branch; frozen unless configured otherwise."""
        return tuple(self.get_submodule(name) for name in self.foundation_names())

    def foundation_names(self) -> tuple[str, ...]:
        """Names of the children that freeze, as they prefix the keys of a state dict."""
        children = dict(self.named_children())
        return tuple(name for name in ("diffusion", "semantic") if name in children)

    def forward(
        self,
        image: Tensor | FoundationOutputs,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Aggregated map, or one per stride of a pyramid.

        Args:
            image: ``[B, in_channels, H, W]`` in -1..1, sides of at least 32 px; or what `encode`
                made of it.
            seed: Seed of this call's noise; None for the configured one.
            generator: Generator that replaces the seed; it is advanced.

        Returns:
            ``[B, out_channels, ceil(H / stride), ceil(W / stride)]``, or a tuple of them.

        Raises:
            TypeError, ValueError: See `sketchfusion_plugins.images.check_image`, and of the seed
                `sketchfusion_plugins.noise.draw_noise`.
        """
        levels = self.forward_levels(image, seed=seed, generator=generator)
        if isinstance(image, FoundationOutputs):
            return self.aggregate(levels, image.image_size)
        return self.aggregate(levels, (image.shape[-2], image.shape[-1]))

    def aggregate(
        self, levels: FeatureLevels, image_size: tuple[int, int]
    ) -> Tensor | tuple[Tensor, ...]:
        """Aggregate levels of images of a size; see `forward`."""
        # Coarse levels of sides that are no multiple of their stride are stretched to the image's,
        # as the UNet itself does on the way up. Widened to what their cells cover they matched
        # worse: PCK@5 0.589 against 0.601 at 104 px, 0.639 against 0.650 at 120 px, 125 pairs.
        multiple = self.diffusion.latent_stride
        rows, columns = cells(image_size, multiple)
        padded = (rows * multiple, columns * multiple)
        if isinstance(self.aggregator, AdaptivePyramid):
            maps = self.aggregator(levels.maps, padded)
            return tuple(
                _crop(result, cells(image_size, stride))
                for result, stride in zip(maps, self.aggregator.strides, strict=True)
            )
        if self.aggregator is None:
            raise ValueError(
                "this encoder was configured without aggregation; call forward_levels instead."
            )
        assert self.config.aggregation is not None
        stride = self.config.aggregation.stride
        assert isinstance(stride, int)
        return _crop(self.aggregator(levels.maps, cells(padded, stride)), cells(image_size, stride))

    def encode(
        self,
        image: Tensor,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        fuse: bool = True,
    ) -> FoundationOutputs:
        """What the foundations make of images before the first injection, to be kept and reused.

        It goes where an image goes, with the same result: ``encoder(encoder.encode(image))``.

        Args:
            image: ``[B, in_channels, H, W]`` in -1..1, sides of at least 32 px.
            seed: Seed of the posterior's sample, if one is configured; None for the configured one.
            generator: Generator that replaces the seed; a sample advances it.
            fuse: Make the tokens too, where any are injected.

        Raises:
            TypeError, ValueError: See `sketchfusion_plugins.images.check_image`, and of the seed
                `sketchfusion_plugins.noise.draw_noise`.
        """
        pixels = self._pixels(image)
        tokens = None
        if fuse and len(self.injector.projections):
            tokens = self._tokens(pixels)
        latents = self.diffusion.encode(pixels, seed, generator)
        return FoundationOutputs(latents, tokens, (image.shape[-2], image.shape[-1]))

    def forward_levels(
        self,
        image: Tensor | FoundationOutputs,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        fuse: bool = True,
    ) -> FeatureLevels:
        """Levels before aggregation, fine to coarse.

        Args:
            image: ``[B, in_channels, H, W]`` in -1..1, sides of at least 32 px; or what `encode`
                made of it.
            seed: Seed of this call's noise; None for the configured one.
            generator: Generator that replaces the seed; it is advanced.
            fuse: Inject tokens; False gives Stable Diffusion's own levels.

        Raises:
            TypeError, ValueError: See `encode`; or its outputs are those of another encoder; or
                float16, asked for by autocast or ``half()``, is too narrow for the weights.
        """
        fuse = fuse and len(self.injector.projections) > 0
        if isinstance(image, FoundationOutputs):
            image.check(self.diffusion, self.semantic.channels if fuse else None)
            encoded = image
        else:
            encoded = self.encode(image, seed=seed, generator=generator, fuse=fuse)
        inject, dtype = None, self.dtype
        if fuse:
            assert encoded.tokens is not None
            tokens = encoded.tokens.to(dtype)  # once, not at every site

            def inject(name: str, hidden: Tensor) -> Tensor:
                result: Tensor = self.injector(name, hidden, tokens)
                return result

        outputs = self.diffusion.denoise(
            encoded.latents,
            inject,
            self.config.injection.inject_skips,
            seed=seed,
            generator=generator,
        )
        blocks = self.level_blocks
        refuse_overflow([outputs[block.name] for block in blocks])
        return FeatureLevels(
            tuple(outputs[block.name].to(dtype) for block in blocks),
            tuple(block.stride for block in blocks),
            tuple(block.name for block in blocks),
        )

    def forward_tokens(self, image: Tensor) -> Tensor:
        """The semantic branch alone: tokens ``[B, channels, rows, columns]`` of its own grid."""
        return self._tokens(self._pixels(image)).to(self.dtype)

    def _pixels(self, image: Tensor) -> Tensor:
        """Images as the foundations take them, after a check."""
        check_image(image, self.config.in_channels)
        return pad_to_multiple(to_rgb(image), self.diffusion.latent_stride)

    def _tokens(self, pixels: Tensor) -> Tensor:
        shrink = self.config.semantic.shrink
        return self.semantic(resize_for_tokens(pixels, self.semantic, shrink))

    def train(self, mode: bool = True) -> SketchFusionEncoder:
        """Set the mode of what trains; frozen foundations stay in eval mode."""
        super().train(mode)
        refuse_lost_activations(self.foundations())
        if self.config.freeze_foundations:
            for foundation in self.foundations():
                foundation.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory: recompute activations inside UNet blocks in backward.

        Foundations that gradient never enters (frozen VAE and CLIP) have nothing to recompute.
        """
        checkpoint_blocks(self.diffusion, self.semantic, enable, self.config.freeze_foundations)

    def set_taps(self, taps: tuple[str, ...]) -> None:
        """Return these levels alone from now on, and delete what no longer runs.

        Aggregation goes too, since it is made for the levels it was built with.

        Raises:
            ValueError: A name is unknown, or was cut away; the message lists the valid ones.
        """
        denoiser = self.diffusion.denoiser
        with forgetting_what_goes(self):
            denoiser.set_taps(taps)
        kept = {block.name for block in denoiser.blocks}
        for name in list(self.injector.projections):
            if name not in kept:
                del self.injector.projections[name]
        self.aggregator = None
        self.config = self.config.replace(
            taps=denoiser.taps,
            aggregation=None,
            injection__sites=tuple(self.injector.projections),
        )

    def trainable_parameters(self) -> ParameterCount:
        """Numbers of trainable and of all parameters; prints as one line."""
        return count_parameters(self)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapters; see `sketchfusion_plugins.checkpoint.save_adapters`."""
        save_adapters(self, folder)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        allow_pickle: bool = False,
        **changes: Any,
    ) -> SketchFusionEncoder:
        """Build the encoder that a checkpoint describes and load its adapters; in eval mode.

        Args:
            source: Folder written by `save_pretrained`, a Hugging Face id of one, or
                ``"sketchfusion/tiny"``, which is part of the package.
            revision: Branch, tag or commit of a hub id.
            allow_pickle: See the class.
            changes: Config fields to change, as in `EncoderConfig.replace`, for instance
                ``diffusion__source="/data/stable-diffusion"``.

        Raises:
            CheckpointError: The checkpoint is damaged, or made for other foundations.
            OSError: It, or its foundations, cannot be found.
        """
        config = read_config(source, revision=revision)
        encoder = cls(config.replace(**changes), allow_pickle=allow_pickle)
        load_adapters(encoder, source, revision=revision, strict=False)
        return encoder.eval()

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the adapters; see `sketchfusion_plugins.publish.push_adapters`."""
        return push_adapters(self, repo_id, **options)


def _crop(result: Tensor, size: tuple[int, int]) -> Tensor:
    return result[..., : size[0], : size[1]]
