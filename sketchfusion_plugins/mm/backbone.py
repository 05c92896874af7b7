"""The encoder as an mmengine backbone: images in, levels out, small checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from sketchfusion_plugins.config import EncoderConfig
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.inference.models import find_config
from sketchfusion_plugins.mm.frozen import FrozenFoundations
from sketchfusion_plugins.semantic_loading import semantic_changes


@MODELS.register_module()
class SketchFusion(FrozenFoundations, BaseModule):  # type: ignore[misc]
    """Frozen Stable Diffusion and CLIP with trained injection, without aggregation.

    Aggregation is a neck's: see `AdaptiveAggregationNeck` and `AdaptivePyramidNeck`. Inputs are
    normalised to -1..1: mean and standard deviation 127.5 in mmseg's data preprocessor.

    Frozen foundations stay in eval mode, are no part of a state dict, keep their weights through
    ``init_weights`` and are shared by copies of the backbone. A checkpoint remembers which
    foundations it was trained on; a merged one (`sketchfusion_plugins.mm.export`) holds them, and
    replaces whatever foundations the backbone was built with.

    Args:
        variant: timm name, with or without tag (``"sketchfusion_base.cleandift"``), or the name of
            a preset (``"paper"``).
        config: Configuration that replaces the variant, as of `EncoderConfig.to_dict`.
        adapters: Folder, file or Hugging Face id of adapters that `save_pretrained` wrote; replaces
            the variant by the configuration they were trained with.
        changes: Changes of the configuration, as in `EncoderConfig.replace`:
            ``dict(diffusion__timestep=50, taps=("up1", "up2"))``.
        diffusion: Hugging Face id or folder that replaces the configuration's. ``cleandift`` takes
            its UNet's weights from another file; to have that local too, add
            ``changes=dict(diffusion__unet_file="/path/cleandift_sd21_unet.safetensors")``.
        semantic: Folder, Hugging Face id of a CLIP, or name of a timm ViT that replaces the
            configuration's: ``"vit_base_patch14_dinov2.lvd142m"``. ``semantic__final_norm`` stays
            the configuration's (True in ``sketchfusion_tiny``, else False).
        weights: ``"pretrained"`` or ``"random"`` foundations; None keeps the configuration's.
        in_channels: 1, 3 or 4; None keeps the configuration's.
        freeze_foundations: None keeps the configuration's (frozen).
        foundation_dtype: ``"float32"`` or ``"bfloat16"``; None keeps the configuration's.
        with_cp: Recompute activations inside UNet blocks in backward, to save memory.
        allow_pickle: See `SketchFusionEncoder`.
        init_cfg: None, or ``dict(type="Pretrained", checkpoint=..., prefix="backbone.")``, or a
            list of such.

    Raises:
        OSError: Foundations or adapters cannot be loaded.
        ValueError: Unknown variant, field or value.
    """

    _is_init: bool

    def __init__(
        self,
        variant: str = "sketchfusion_base",
        config: Mapping[str, Any] | None = None,
        adapters: str | None = None,
        changes: Mapping[str, Any] | None = None,
        diffusion: str | None = None,
        semantic: str | None = None,
        weights: str | None = None,
        in_channels: int | None = None,
        freeze_foundations: bool | None = None,
        foundation_dtype: str | None = None,
        with_cp: bool = False,
        allow_pickle: bool = False,
        init_cfg: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        entries = [init_cfg] if isinstance(init_cfg, Mapping) else init_cfg or []
        if any(entry.get("type") != "Pretrained" for entry in entries):
            raise ValueError(
                f"init_cfg must be None or of type 'Pretrained', got {init_cfg!r}: any other "
                "would overwrite the foundations. Choose how injection starts with "
                "changes=dict(injection__init='zero' or 'official')."
            )
        super().__init__(init_cfg)
        given: dict[str, Any] = {
            "diffusion__source": diffusion,
            **semantic_changes(semantic),
            "weights": weights,
            "in_channels": in_channels,
            "freeze_foundations": freeze_foundations,
            "foundation_dtype": foundation_dtype,
        }
        replaced = {key: value for key, value in given.items() if value is not None}
        replaced |= changes or {}
        if adapters is not None:
            self.encoder = SketchFusionEncoder.from_pretrained(
                adapters, allow_pickle=allow_pickle, **replaced
            )
            self.encoder.set_taps(self.encoder.diffusion.denoiser.taps)
        else:
            full = find_config(variant) if config is None else EncoderConfig.from_dict(config)
            self.encoder = SketchFusionEncoder(
                full.replace(**{**replaced, "aggregation": None}), allow_pickle=allow_pickle
            )
        self.encoder.set_grad_checkpointing(with_cp)
        blocks = self.encoder.level_blocks
        self.out_channels = tuple(block.channels for block in blocks)
        self.out_strides = tuple(block.stride for block in blocks)
        self.hide_foundations()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Levels ``[B, out_channels[i], ceil(H / out_strides[i]), ceil(W / out_strides[i])]``.

        Args:
            x: Images ``[B, in_channels, H, W]`` in -1..1, sides of at least 32 px.

        Raises:
            TypeError, ValueError: See `sketchfusion_plugins.images.check_image`.
        """
        return self.encoder.forward_levels(x).maps

    def init_weights(self) -> None:
        """Load what ``init_cfg`` names; nothing is drawn anew.

        Foundations were loaded and adapters initialised when the backbone was built.
        """
        if self.init_cfg and not self._is_init:
            from mmengine.model import initialize

            initialize(self, self.init_cfg)
        self._is_init = True

    def apply(self, fn: Callable[[nn.Module], None]) -> SketchFusion:
        """Apply a function to all modules but frozen foundations.

        mmengine initialises with it what an ``init_cfg`` of the whole segmentor names.
        """
        if not self.encoder.config.freeze_foundations:
            super().apply(fn)
            return self
        for name, child in self.encoder.named_children():
            if name not in self.encoder.foundation_names():
                child.apply(fn)
        return self
