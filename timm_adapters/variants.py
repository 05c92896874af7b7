"""The models that timm knows by name, and where their weights come from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from timm.models._features import FeatureGetterNet
from timm.models._input import update_model_args
from torch import nn

from sketchfusion_plugins.adapter_file import (
    WEIGHTS_FILE,
    CheckpointError,
    MisfitError,
    locate,
    read_config,
)
from sketchfusion_plugins.config import EncoderConfig
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.hub import BUNDLED_WEIGHTS, bundled_weights
from sketchfusion_plugins.timm_entries import TIMM_CFG
from timm_adapters.sketchfusion import SketchFusion

_logger = logging.getLogger(__name__)


def _cfg(side: int, **changes: Any) -> dict[str, Any]:
    return {
        **TIMM_CFG,
        "input_size": (3, side, side),
        "pool_size": (side // 8, side // 8),
        "num_classes": 1000,
        "first_conv": (
            "encoder.diffusion.vae.encoder.conv_in",
            "encoder.semantic.model.embeddings.patch_embedding",
        ),
        "paper_ids": "arXiv:2503.14129",
        "paper_name": "SketchFusion: Learning Universal Sketch Features through Fusing "
        "Foundation Models",
        **changes,
    }


_OPENRAIL = "creativeml-openrail-m"
_TINY = "sketchfusion/tiny"
_TINY_ADAPTERS = str(BUNDLED_WEIGHTS[_TINY] / WEIGHTS_FILE)
# timm's name for a whole state dict.
_WHOLE_FILE = "model.safetensors"

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


def _is_exported(cfg: PretrainedCfg, pretrained: bool) -> bool:
    """Whether timm's ``save_for_hf`` or ``push_to_hf_hub`` wrote it: a whole state dict.

    Raises:
        OSError: Weights are wanted of a folder that has none, or has them pickled alone.
    """
    # So timm marks what it writes; `SketchFusion.save_pretrained` writes "hf".
    exported = cfg.source in ("local-dir", "hf-hub") and not cfg.custom_load
    if not exported or cfg.source == "hf-hub":
        return exported
    folder = Path(cfg.file)
    if (folder / WEIGHTS_FILE).is_file():
        return False
    if pretrained and not (folder / _WHOLE_FILE).is_file():
        held = ", ".join(sorted(item.name for item in folder.iterdir())[:8])
        raise OSError(
            f"expected {WEIGHTS_FILE} or {_WHOLE_FILE} in {folder}, which holds {held}. Write it "
            "by model.save_pretrained or timm.models.save_for_hf(..., safe_serialization=True); a "
            "whole state dict in another file is loaded by pretrained=False and checkpoint_path=."
        )
    return True


def _find_adapters(cfg: PretrainedCfg) -> Path | None:
    """File of the adapters that the caller named, with their configuration; None for a URL."""
    if cfg.source == "local-dir":
        # Absolute: no folder is taken for a Hugging Face id.
        return locate(Path(cfg.file).absolute(), None)
    if cfg.hf_hub_id and (cfg.source == "hf-hub" or not cfg.file):
        repository, _, revision = cfg.hf_hub_id.partition("@")
        return locate(repository, revision or None)
    return Path(cfg.file) if cfg.file else None


def _read_config(adapters: Path) -> EncoderConfig:
    """Configuration of adapters; the error for another file says where a state dict goes."""
    try:
        return read_config(adapters)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} If it is a whole state dict, give it as checkpoint_path=."
        ) from error


def _refuse_levels(adapters: Path, config: EncoderConfig) -> None:
    """Say where adapters of a backbone go, which no timm model can be made from."""
    if config.aggregation is not None and isinstance(config.aggregation.stride, int):
        return
    raise ValueError(
        f"{adapters} holds levels that are not aggregated to one map, as features_only=True and "
        "segmentation_models.pytorch train them. Make the model as it was made then, without this "
        "file, and load it by sketchfusion_plugins.checkpoint.load_adapters(model, FOLDER); or "
        "use SketchFusionEncoder.from_pretrained(FOLDER)."
    )


def _list_trained(model: nn.Module) -> str:
    """What a model has beside its foundations, for a message."""
    encoder = _find_encoder(model)
    parts = {
        "injection": len(encoder.injector.projections) > 0,
        "aggregation": encoder.aggregator is not None,
        "head": isinstance(model, SketchFusion) and model.num_classes > 0,
    }
    *names, last = [name for name, has in parts.items() if has] or ["nothing"]
    return f"{', '.join(names)} and {last} are" if names else f"{last} is"


def _has_fresh_head(model: nn.Module, classes: int | None) -> bool:
    """Whether what was loaded had no classifier of this model's shape.

    Args:
        model: The model.
        classes: Of a whole state dict, of which timm leaves out another classifier.
    """
    if not isinstance(model, SketchFusion) or model.num_classes == 0:
        return False
    if classes is not None:
        return classes != model.num_classes
    return any(name.startswith("head.") for name in model.fresh)


def _find_encoder(model: nn.Module) -> SketchFusionEncoder:
    return next(m for m in model.modules() if isinstance(m, SketchFusionEncoder))


def _check_feature_class(variant: str, asked: object) -> None:
    """Refuse other ways to features, which look for modules that levels are not outputs of."""
    name = asked.lower() if isinstance(asked, str) else asked
    if name == "getter" or (isinstance(name, type) and issubclass(name, FeatureGetterNet)):
        return
    raise ValueError(
        f"{variant} gives its levels by forward_intermediates, so feature_cls must be 'getter', "
        f"which is the default; got {asked!r}. Leave feature_cls out, and choose levels by "
        "out_indices."
    )


def _create_sketchfusion(variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    output_stride = kwargs.pop("output_stride", 32)
    if output_stride != 32:
        raise NotImplementedError(
            f"{variant} has levels of strides 4, 8, 16 and 32, so output_stride must be 32, got "
            f"{output_stride}. Of segmentation_models.pytorch take a decoder that needs no "
            "dilation: Unet, FPN or UPerNet, not DeepLabV3, DeepLabV3Plus or PAN."
        )
    _check_feature_class(variant, kwargs.get("feature_cls", "getter"))
    given = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"))
    exported = _is_exported(given, pretrained)
    # timm takes a file named by the caller for a whole state dict; ours hold adapters, and a check.
    overlay = {
        "custom_load": False if exported else "hf",
        **(kwargs.pop("pretrained_cfg_overlay", None) or {}),
    }
    if overlay.get("hf_hub_id") or overlay.get("url"):
        # timm prefers a file, which would be the packaged one.
        overlay.setdefault("file", None)
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
    named = cfg.hf_hub_id or cfg.file or cfg.url
    own = None
    recorded: dict[str, Any] = {}
    if not exported and (
        cfg.source in ("local-dir", "hf-hub") or (pretrained and cfg.file != _TINY_ADAPTERS)
    ):
        own = _find_adapters(cfg)
    if own is not None:
        overlay |= {"source": None, "file": str(own)}
        cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
        saved = _read_config(own)
        if "config" not in kwargs:
            _refuse_levels(own, saved)
            # A whole state dict does not tell it: timm writes it down where it exports the model.
            recorded["config"] = saved.to_dict()
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

    reason = ""
    if not (pretrained and (cfg.has_weights or cfg.state_dict)):
        model, loaded = build(False), ""
    elif exported:
        model, loaded = build(True), f"loaded the whole state dict of {named} over them"
    elif cfg.state_dict:
        model, loaded = build(True), "loaded the given state dict over them"
    elif cfg.file != _TINY_ADAPTERS:
        model, loaded = build(True), f"loaded adapters {named}"
    else:
        bundled_weights(_TINY)
        try:
            model, loaded = build(True), f"loaded adapters {_TINY}"
        except MisfitError as error:
            # The caller changed foundations or architecture: then these adapters are not meant.
            model, loaded, reason = build(False), "", f", because {error}"
    whole = bool(loaded) and (exported or bool(cfg.state_dict))
    if _has_fresh_head(model, cfg.num_classes if whole else None):
        loaded += "; a head is fresh"
    adapters = loaded or f"{_list_trained(model)} fresh{reason}"
    if recorded:
        update_model_args(model, **recorded)
    encoder = _find_encoder(model)
    config = encoder.config
    # On the meta device, where segmentation_models.pytorch looks at channels, nothing will train.
    real = not any(parameter.is_meta for parameter in encoder.parameters())
    if real and not pretrained and config.weights == "random" and config.freeze_foundations:
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
