"""The models that timm knows by name, and where their weights come from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from torch import nn

from sketchfusion_plugins.adapter_file import WEIGHTS_FILE, MisfitError, locate, read_config
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.hub import BUNDLED_WEIGHTS, bundled_weights
from timm_adapters.sketchfusion import SketchFusion

_logger = logging.getLogger(__name__)


def _cfg(side: int, **changes: Any) -> dict[str, Any]:
    return {
        "input_size": (3, side, side),
        "pool_size": (side // 8, side // 8),
        "num_classes": 1000,
        # A sketch's strokes reach its border: nothing is cropped, no bars are added.
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": (
            "encoder.diffusion.vae.encoder.conv_in",
            "encoder.semantic.model.embeddings.patch_embedding",
        ),
        "classifier": "head.fc",
        "hf_hub_filename": WEIGHTS_FILE,
        "custom_load": "hf",
        "paper_ids": "arXiv:2503.14129",
        "paper_name": "SketchFusion: Learning Universal Sketch Features through Fusing "
        "Foundation Models",
        **changes,
    }


_OPENRAIL = "creativeml-openrail-m"
_TINY = "sketchfusion/tiny"
_TINY_ADAPTERS = str(BUNDLED_WEIGHTS[_TINY] / WEIGHTS_FILE)

default_cfgs = generate_default_cfgs(
    {
        "sketchfusion_base.sd21": _cfg(336, license=f"{_OPENRAIL} (openrail++)"),
        "sketchfusion_base.cleandift": _cfg(336, license=f"{_OPENRAIL} (openrail++), MIT"),
        "sketchfusion_base.sd15": _cfg(336, license=_OPENRAIL),
        "sketchfusion_small.bksdm": _cfg(256, license=_OPENRAIL),
        "sketchfusion_tiny.open_pictures": _cfg(
            128,
            file=_TINY_ADAPTERS,
            license="cc-by-sa-4.0",
            first_conv=(
                "encoder.diffusion.vae.encoder.layers.0",
                "encoder.semantic.model.patch_embed.backbone.stem.conv",
            ),
        ),
    }
)

TAG_PRESETS = {
    "sd21": "paper",
    "cleandift": "cleandift",
    "sd15": "sd15",
    "bksdm": "small",
    "open_pictures": "tiny",
}


def _find_adapters(cfg: PretrainedCfg) -> Path | None:
    """File of the adapters that the caller named, with their configuration; None for a URL."""
    if cfg.source == "local-dir":
        return Path(cfg.file) / WEIGHTS_FILE
    if cfg.hf_hub_id and (cfg.source == "hf-hub" or not cfg.file):
        repository, _, revision = cfg.hf_hub_id.partition("@")
        return locate(repository, revision or None)
    return Path(cfg.file) if cfg.file else None


def _create_sketchfusion(variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    output_stride = kwargs.pop("output_stride", 32)
    if output_stride != 32:
        raise NotImplementedError(
            f"{variant} has levels of strides 4, 8, 16 and 32, so output_stride must be 32, got "
            f"{output_stride}. Of segmentation_models.pytorch take a decoder that needs no "
            "dilation: Unet, FPN or UPerNet, not DeepLabV3, DeepLabV3Plus or PAN."
        )
    # timm takes a file named by the caller for a whole state dict; ours hold adapters, and a check.
    overlay = {"custom_load": "hf", **(kwargs.pop("pretrained_cfg_overlay", None) or {})}
    if overlay.get("hf_hub_id") or overlay.get("url"):
        # timm prefers a file, which would be the packaged one.
        overlay.setdefault("file", None)
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
    named = cfg.hf_hub_id or cfg.file or cfg.url
    own = None
    if cfg.source in ("local-dir", "hf-hub") or (pretrained and cfg.file != _TINY_ADAPTERS):
        own = _find_adapters(cfg)
    if own is not None:
        overlay |= {"source": None, "file": str(own)}
        cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
        saved = read_config(own)
        kwargs.setdefault("config", saved)
        kwargs.setdefault("weights", saved.weights if pretrained else "random")
    kwargs.setdefault(
        "config", TAG_PRESETS.get(cfg.tag, TAG_PRESETS[default_cfgs[variant].tags[0]])
    )
    kwargs.setdefault("weights", "pretrained" if pretrained else "random")
    if kwargs.get("cache_dir") and kwargs["weights"] == "pretrained":
        _logger.warning(
            "%s: cache_dir=%s is timm's alone; foundations from the hub go to %s. To keep them "
            "elsewhere, set HF_HOME before Python starts.",
            variant,
            kwargs["cache_dir"],
            HF_HUB_CACHE,
        )

    def build(with_adapters: bool) -> nn.Module:
        model: nn.Module = build_model_with_cfg(
            SketchFusion,
            variant,
            pretrained=with_adapters,
            pretrained_cfg_overlay=overlay,
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
            **kwargs,
        )
        return model

    has_adapters = bool(pretrained and cfg.has_weights)
    if not has_adapters:
        model, adapters = build(False), "injection, aggregation and head are fresh"
    elif cfg.file != _TINY_ADAPTERS:
        model, adapters = build(True), f"loaded adapters {named}"
    else:
        bundled_weights(_TINY)
        try:
            model, adapters = build(True), f"loaded adapters {_TINY}; a head is fresh"
        except MisfitError as error:
            # The caller changed foundations or architecture: then these adapters are not meant.
            model = build(False)
            adapters = f"injection, aggregation and head are fresh, because {error}"
    config = next(m for m in model.modules() if isinstance(m, SketchFusionEncoder)).config
    if not pretrained and config.weights == "random" and config.freeze_foundations:
        _logger.warning(
            "%s: foundations are random and frozen, so they never learn. Use pretrained=True, load "
            "a whole state dict, or train them from scratch with freeze_foundations=False.",
            variant,
        )
    if pretrained:
        _logger.warning(
            "%s: loaded foundations %s and %s; %s",
            variant,
            config.diffusion.source,
            config.semantic.source,
            adapters.removesuffix(".") + ".",
        )
    return model


@register_model
def sketchfusion_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Stable Diffusion 2.1-base (tags: CleanDIFT, 1.5) with CLIP ViT-L/14 at 336 px."""
    return _create_sketchfusion("sketchfusion_base", pretrained=pretrained, **kwargs)


@register_model
def sketchfusion_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BK-SDM-v2-small (a distilled Stable Diffusion 2.1) with CLIP ViT-B/16 at 256 px."""
    return _create_sketchfusion("sketchfusion_small", pretrained=pretrained, **kwargs)


@register_model
def sketchfusion_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The same architecture in miniature, 12 M parameters, at 128 px."""
    return _create_sketchfusion("sketchfusion_tiny", pretrained=pretrained, **kwargs)
