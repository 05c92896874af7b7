"""SketchFusion as timm models: a thin face of `SketchFusionEncoder` with a classifier.

>>> import timm, sketchfusion_plugins
>>> model = timm.create_model("sketchfusion_tiny", pretrained=True, num_classes=250)
>>> backbone = timm.create_model("sketchfusion_tiny", pretrained=True, features_only=True)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from timm.models._features import feature_take_indices
from timm.models._pretrained import filter_pretrained_cfg
from torch import Tensor, nn

from sketchfusion_plugins.adapter_file import WEIGHTS_FILE
from sketchfusion_plugins.aggregation import AdaptivePyramid, cells
from sketchfusion_plugins.checkpoint import load_adapters, save_adapters
from sketchfusion_plugins.config import EncoderConfig
from sketchfusion_plugins.encoder import FeatureLevels, SketchFusionEncoder
from sketchfusion_plugins.presets import preset
from sketchfusion_plugins.semantic_loading import semantic_changes
from sketchfusion_plugins.wrappers import find_encoder
from timm_adapters.head import NormClassifierHead

_logger = logging.getLogger(__name__)

# torch.fx cannot trace diffusers and transformers; the encoder is one leaf of a traced graph.
register_notrace_module(SketchFusionEncoder)


def read_config_argument(config: EncoderConfig | Mapping[str, Any] | str) -> EncoderConfig:
    """A configuration, also by its `EncoderConfig.to_dict` or the name of a preset."""
    if isinstance(config, str):
        return preset(config)
    return config if isinstance(config, EncoderConfig) else EncoderConfig.from_dict(config)


class SketchFusion(nn.Module):
    """Fused encoder, global pooling and classifier.

    ``forward_features`` gives the aggregated map. ``forward_intermediates`` and
    ``features_only=True`` give the UNet's levels before aggregation, and before them the finest one
    enlarged to half of its stride: strides 4, 8, 16 and 32, which consumers such as
    segmentation_models.pytorch ask for, unless other ``taps`` are chosen.

    Args:
        config: Configuration, its `EncoderConfig.to_dict`, or the name of a preset.
        num_classes: Classes; 0 for no classifier. See `NormClassifierHead`.
        in_chans: 1 (grey), 3 (RGB) or 4 (RGBA, composited on white).
        global_pool: timm pooling type; empty for none.
        drop_rate: Dropout before the classifier.
        freeze_foundations: See `EncoderConfig`; None keeps the configuration's value.
        foundation_dtype: See `EncoderConfig`; None keeps the configuration's value.
        weights: ``"pretrained"`` or ``"random"`` foundations.
        diffusion: Hugging Face id or folder that replaces the configuration's. ``cleandift`` takes
            its UNet's weights from another file; to have that local too, add
            ``changes=dict(diffusion__unet_file="/path/cleandift_sd21_unet.safetensors")``.
        semantic: Folder, Hugging Face id of a CLIP, or name of a timm ViT that replaces the
            configuration's: ``"vit_base_patch14_dinov2.lvd142m"``. ``semantic__final_norm`` stays
            the configuration's (True in ``sketchfusion_tiny``, else False).
        changes: Further changes, as in `EncoderConfig.replace`.
        allow_pickle: See `SketchFusionEncoder`.
        device: Device to build on.
        dtype: Precision of all parameters; foundations too.

    Attributes:
        fresh: Names of what trains and was not in the file that `load_pretrained` read last.
    """

    def __init__(
        self,
        config: EncoderConfig | Mapping[str, Any] | str = "paper",
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        freeze_foundations: bool | None = None,
        foundation_dtype: str | None = None,
        weights: str = "random",
        diffusion: str | None = None,
        semantic: str | None = None,
        changes: Mapping[str, Any] | None = None,
        allow_pickle: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        config = read_config_argument(config)
        given = {
            "freeze_foundations": freeze_foundations,
            "foundation_dtype": foundation_dtype,
            "diffusion__source": diffusion,
            **semantic_changes(semantic),
        }
        replaced = {key: value for key, value in given.items() if value is not None}
        replaced |= changes or {}
        config = config.replace(in_channels=in_chans, weights=weights, **replaced)
        self.num_classes = num_classes
        self.in_chans = in_chans
        with nullcontext() if device is None else torch.device(device):
            self.encoder = SketchFusionEncoder(config, allow_pickle=allow_pickle)
            if self.encoder.aggregator is None or isinstance(
                self.encoder.aggregator, AdaptivePyramid
            ):
                raise ValueError(
                    "a timm model needs aggregation to one map; give AggregationConfig an integer "
                    "stride. For a pyramid use SketchFusionEncoder itself."
                )
            self.num_features = self.encoder.aggregator.out_channels
            self.head = NormClassifierHead(self.num_features, num_classes, global_pool, drop_rate)
            self.head_hidden_size = self.head.num_features
        blocks = self.encoder.level_blocks
        finest = blocks[0]
        self.feature_info: list[dict[str, Any]] = [
            {
                "num_chs": finest.channels,
                "reduction": finest.stride // 2,
                "module": f"encoder.{finest.name}.enlarged",
            },
            *(
                {"num_chs": b.channels, "reduction": b.stride, "module": f"encoder.{b.name}"}
                for b in blocks
            ),
        ]
        # The stride-4 level is the finest block's output too.
        self.feature_blocks = (finest.name, *(block.name for block in blocks))
        self.output_index: int | None = None
        self.fresh: list[str] = []
        if dtype is not None:
            self.to(dtype)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a whole state dict; see `torch.nn.Module.load_state_dict`.

        Raises:
            RuntimeError: It does not fit, or ``strict`` and it holds adapters alone.
        """
        prefix, encoder = find_encoder(self)
        inside = tuple(f"{prefix}{name}." for name in encoder.foundation_names())
        own = {name for name in self.state_dict() if not name.startswith(inside)}
        if strict and state_dict and own.issuperset(state_dict):
            raise RuntimeError(
                "expected a whole state dict, got one without foundations, as adapters are. Load "
                "the folder that save_pretrained wrote: timm.create_model('local-dir:FOLDER', "
                "pretrained=True), or sketchfusion_plugins.checkpoint.load_adapters(model, FOLDER)."
            )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def forward_features(self, x: Tensor) -> Tensor:
        """Aggregated map ``[B, num_features, h, w]``; after pruning, the coarsest kept level."""
        if self.output_index is not None:
            return self._feature(self.encoder.forward_levels(x), self.output_index, x)
        features = self.encoder(x)
        return features  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify a map of `forward_features`."""
        output: Tensor = self.head(x, pre_logits=pre_logits)
        return output

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of images ``[B, in_chans, H, W]`` in -1..1."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Levels, as timm's feature wrappers ask for them.

        Args:
            x: Images ``[B, in_chans, H, W]`` in -1..1.
            indices: Levels to return: a number of last ones, or indices; None for all.
            norm: Without effect, there is no final norm.
            stop_early: Without effect, one pass gives all levels; prune to save time.
            output_fmt: ``"NCHW"`` only.
            intermediates_only: Leave out the aggregated map.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}.")
        taken, _ = feature_take_indices(len(self.feature_info), indices)
        levels = self.encoder.forward_levels(x)
        intermediates = [self._feature(levels, index, x) for index in taken]
        if intermediates_only:
            return intermediates
        if self.output_index is not None:
            return self._feature(levels, self.output_index, x), intermediates
        final = self.encoder.aggregate(levels, (x.shape[-2], x.shape[-1]))
        assert isinstance(final, Tensor)
        return final, intermediates

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Delete what the given levels do not need; see timm.

        The aggregation stands where other models have their final norm: ``prune_norm`` deletes it,
        with every block and injection that runs after the last kept level.
        """
        taken, last = feature_take_indices(len(self.feature_info), indices)
        if prune_norm:
            self.encoder.set_taps(tuple(dict.fromkeys(self.feature_blocks[i] for i in taken)))
            self.output_index = last
            self.num_features = self.feature_info[last]["num_chs"]
            self._reset_head(self.num_classes, in_features=self.num_features)
        if prune_head:
            self.reset_classifier(0, "")
        return list(taken)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; see timm."""
        self.num_classes = num_classes
        self._reset_head(num_classes, pool_type=global_pool)

    def get_classifier(self) -> nn.Module:
        """The classifier's last layer."""
        classifier: nn.Module = self.head.fc
        return classifier

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See `SketchFusionEncoder.set_grad_checkpointing`."""
        self.encoder.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Depth of parameters for layer-wise optimisers: UNet blocks in the order they run."""
        unet = r"^encoder\.diffusion\.denoiser\.unet\."
        blocks: list[tuple[str, tuple[int, ...] | None]] = []
        for depth, block in enumerate(self.encoder.diffusion.denoiser.blocks):
            # As diffusers names them: down0 is down_blocks.0, mid is mid_block.
            module = re.sub(r"(down|up)(\d+)", r"\1_blocks\\.\2", block.name)
            module = "mid_block" if block.name == "mid" else module
            blocks.append((rf"{unet}{module}\.", (depth,)))
            blocks.append((rf"^encoder\.injector\.projections\.{block.name}\.", (depth,)))
        stem = (
            rf"^encoder\.(?:semantic|diffusion\.vae)|{unet}(?:conv_in|time_embedding|add_embedding)"
        )
        return {"stem": stem, "blocks": [*blocks, (r"^encoder\.aggregator", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay would only hurt."""
        return {"encoder.aggregator.branch_logits"}

    def load_pretrained(self, checkpoint_path: str | Path, prefix: str = "") -> None:
        """Load adapters from a file; called by timm for a cfg that names one."""
        self.fresh = load_adapters(self, checkpoint_path, strict=False)
        fresh = ", ".join(self.fresh) or "none"
        _logger.info("Loaded adapters %s; fresh: %s.", checkpoint_path, fresh)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapters and classifier, atomically, without frozen weights.

        A model that timm made is loaded again by its folder, with the foundations it had:
        ``timm.create_model("local-dir:FOLDER", pretrained=True)``.
        """
        save_adapters(self, folder)

    def config_entries(self) -> dict[str, Any]:
        """What timm reads of a ``config.json``; nothing for a model that timm cannot make."""
        if not getattr(self, "pretrained_cfg", None) or self.output_index is not None:
            return {}
        cfg = filter_pretrained_cfg(self.pretrained_cfg, remove_source=True)
        cfg.pop("state_dict", None)
        cfg |= {"num_classes": self.num_classes, "hf_hub_filename": WEIGHTS_FILE}
        # A model made from timm's own export has False, which stands for a whole state dict.
        cfg["custom_load"] = "hf"
        pool = self.head.global_pool.pool_type
        return {
            "architecture": cfg.pop("architecture"),
            "num_classes": self.num_classes,
            "num_features": self.num_features,
            "model_args": {"in_chans": self.in_chans, "global_pool": pool},
            "pretrained_cfg": cfg,
        }

    def _reset_head(self, num_classes: int, **options: Any) -> None:
        # A head without classifier has no parameter that tells its device.
        device = self.encoder.diffusion.denoiser.null_embedding.device
        self.head.reset(num_classes, device=device, dtype=self.encoder.dtype, **options)
        self.head_hidden_size = self.head.num_features

    def _feature(self, levels: FeatureLevels, index: int, x: Tensor) -> Tensor:
        name = self.feature_blocks[index]
        if name not in levels.names:
            raise ValueError(f"level {index} was pruned; {', '.join(levels.names)} remain.")
        level = levels.maps[levels.names.index(name)]
        if index > 0:
            return level
        size = cells((x.shape[-2], x.shape[-1]), self.feature_info[0]["reduction"])
        enlarged = F.interpolate(level, scale_factor=2, mode="bilinear", align_corners=False)
        return enlarged[..., : size[0], : size[1]]
