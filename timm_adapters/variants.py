"""The models that timm knows by name, and where their weights come from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet
from timm.models._input import update_model_args
from torch import nn

from sketchfusion_plugins.adapter_file import WEIGHTS_FILE, MisfitError
from sketchfusion_plugins.hub import BUNDLED_WEIGHTS, bundled_weights
from sketchfusion_plugins.timm_entries import TIMM_CFG
from sketchfusion_plugins.wrappers import find_encoder
from timm_adapters.loading import TINY, Plan, plan_loading
from timm_adapters.sketchfusion import SketchFusion, read_config_argument

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

default_cfgs = generate_default_cfgs(
    {
        "sketchfusion_base.sd21": _cfg(336, license=f"{_OPENRAIL} (openrail++)"),
        "sketchfusion_base.cleandift": _cfg(336, license=f"{_OPENRAIL} (openrail++), MIT"),
        "sketchfusion_base.sd15": _cfg(336, license=_OPENRAIL),
        "sketchfusion_small.bksdm": _cfg(256, license=_OPENRAIL),
        "sketchfusion_tiny.open_pictures": _cfg(
            128,
            file=str(BUNDLED_WEIGHTS[TINY] / WEIGHTS_FILE),
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


def _refuse_unsupported(variant: str, output_stride: int, feature_cls: object) -> None:
    """Refuse options of timm's that these models do not have."""
    if output_stride != 32:
        raise NotImplementedError(
            f"{variant} has levels of its UNet's strides, up to 32, so output_stride must be 32, "
            f"got {output_stride}. Of segmentation_models.pytorch take a decoder that needs no "
            "dilation: Unet, FPN or UPerNet, not DeepLabV3, DeepLabV3Plus or PAN."
        )
    name = feature_cls.lower() if isinstance(feature_cls, str) else feature_cls
    if name == "getter" or (isinstance(name, type) and issubclass(name, FeatureGetterNet)):
        return
    # Other ways to features look for modules that levels are not outputs of.
    raise ValueError(
        f"{variant} gives its levels by forward_intermediates, so feature_cls must be 'getter', "
        f"which is the default; got {feature_cls!r}. Leave feature_cls out, and choose levels by "
        "out_indices."
    )


def _create_sketchfusion(variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    _refuse_unsupported(
        variant, kwargs.pop("output_stride", 32), kwargs.get("feature_cls", "getter")
    )
    plan = plan_loading(
        variant,
        pretrained,
        kwargs.get("pretrained_cfg"),
        kwargs.pop("pretrained_cfg_overlay", None),
        configured="config" in kwargs,
    )
    recorded: dict[str, Any] = {}
    weights = "pretrained" if pretrained else "random"
    if plan.saved is None:
        tag = plan.cfg.tag if plan.cfg.tag in TAG_PRESETS else default_cfgs[variant].tags[0]
        kwargs.setdefault("config", TAG_PRESETS[tag])
    else:
        if "config" not in kwargs:
            # A whole state dict does not tell it: timm writes it down where it exports the model.
            recorded["config"] = plan.saved.to_dict()
        kwargs.setdefault("config", plan.saved)
        weights = plan.saved.weights if pretrained else "random"
    kwargs.setdefault("weights", weights)
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
            pretrained_cfg_overlay=dict(plan.overlay),
            feature_cfg={"out_indices": tuple(range(levels)), "feature_cls": "getter"},
            **kwargs,
        )
        return model

    taps = read_config_argument(kwargs["config"]).taps
    taps = (kwargs.get("changes") or {}).get("taps", taps)
    levels = 4 if taps is None else 1 + len(taps)
    model, loaded = _load(plan, pretrained, build)
    if recorded:
        update_model_args(model, **recorded)
    _report(variant, model, pretrained, loaded)
    return model


def _load(
    plan: Plan, pretrained: bool, build: Callable[[bool], nn.Module]
) -> tuple[nn.Module, str]:
    """Build a model, with adapters where there are any; says what it has of them."""
    whole = False
    if not (pretrained and (plan.cfg.has_weights or plan.cfg.state_dict)):
        model, loaded = build(False), ""
    elif plan.exported:
        model, loaded = build(True), f"loaded the whole state dict of {plan.named} over them"
        whole = True
    elif plan.cfg.state_dict:
        model, loaded = build(True), "loaded the given state dict over them"
        whole = True
    elif not plan.bundled:
        model, loaded = build(True), f"loaded adapters {plan.named}"
    else:
        bundled_weights(TINY)
        try:
            model, loaded = build(True), f"loaded adapters {TINY}"
        except MisfitError as error:
            # The caller changed foundations or architecture: then these adapters are not meant.
            model = build(False)
            return model, f"{_list_trained(model)} fresh, because {error}"
    if _has_fresh_head(model, plan.cfg.num_classes if whole else None):
        loaded += "; a head is fresh"
    return model, loaded or f"{_list_trained(model)} fresh"


def _report(variant: str, model: nn.Module, pretrained: bool, loaded: str) -> None:
    """Say what a model was given, and that random foundations never learn."""
    encoder = find_encoder(model)[1]
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
            loaded.removesuffix(".") + ".",
        )


def _list_trained(model: nn.Module) -> str:
    """What a model has beside its foundations, for a message."""
    encoder = find_encoder(model)[1]
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
