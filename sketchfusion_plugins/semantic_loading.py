"""Semantic branches from the hub, from local folders, or with random weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sketchfusion_plugins.config import SemanticConfig
from sketchfusion_plugins.hub import (
    CLIP_LAYOUT,
    NeverAskedError,
    bundled_architectures,
    cached_snapshots,
    explain_loading,
    find_optional_file,
    read_architecture,
    read_json,
    refuse_unavailable,
    require_weights,
    timm_safetensors,
    without_advice,
)
from sketchfusion_plugins.semantic import CLIP_MEAN, CLIP_STD, ClipVision, TimmVision

IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
# Where transformers' processors keep those of images and of text together.
PROCESSOR_FILE = "processor_config.json"


def semantic_changes(source: str | None) -> dict[str, str]:
    """Changes of a configuration, as in `EncoderConfig.replace`, that make a source its branch.

    Args:
        source: A folder, whose layout tells its kind; an id ``owner/name`` of a CLIP on the hub;
            or the name of a timm model, which has no owner. None for no changes.
    """
    if source is None:
        return {}
    changes = {"semantic__source": source}
    if not Path(source).is_dir():
        changes["semantic__kind"] = "clip" if "/" in source else "timm"
    return changes


def load_semantic(
    config: SemanticConfig,
    *,
    weights: str = "pretrained",
    dtype: torch.dtype = torch.float32,
    allow_pickle: bool = False,
) -> ClipVision | TimmVision:
    """Build the branch from the hub, a local folder, or with random weights.

    Without ``allow_pickle`` pickled weights are refused, but for those of a timm model on the hub
    that has no safetensors: timm reads them by torch's restricted unpickler, which runs no code.

    A CLIP's images are normalised as `read_normalisation` finds; where that says nothing, with
    OpenAI's mean and standard deviation.

    Raises:
        OSError: It cannot be loaded; the message says how to mend it.
        ValueError: The model is of a kind that is not supported.
    """
    refuse_unavailable(config.source, weights)
    if _is_timm(config):
        return _load_timm(config, weights, dtype, allow_pickle)
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.utils import logging

    folder = Path(config.source)
    if folder.is_dir():
        _refuse_other_types(config.source, folder / "config.json")
    if weights == "random":
        if folder.is_dir():
            architecture = read_json(folder / "config.json")
            vision = architecture.get("vision_config", architecture)
        else:
            vision = read_architecture(config.source)["vision"]
        model = CLIPVisionModel(CLIPVisionConfig(**vision)).to(dtype)
    else:
        with (
            explain_loading(
                "CLIP image encoder", config.source, config.revision, CLIP_LAYOUT, config.variant
            ),
            # Of a whole CLIP the text tower is not asked for.
            without_advice(logging),
        ):
            model, loaded = _load_clip(
                config,
                variant=config.variant,
                dtype=dtype,
                use_safetensors=None if allow_pickle else True,
                output_loading_info=True,
            )
            require_weights(loaded["missing_keys"])
    normalisation = read_normalisation(config)
    return ClipVision(
        model,
        config.final_norm,
        normalisation.get("image_mean") or CLIP_MEAN,
        normalisation.get("image_std") or CLIP_STD,
    ).eval()


def _load_clip(config: SemanticConfig, **options: Any) -> Any:
    """What transformers' ``from_pretrained`` gives; of pickled weights, a conversion in the cache.

    Online transformers finds it itself, as of ``openai/clip-vit-large-patch14-336``.
    """
    from huggingface_hub import try_to_load_from_cache
    from transformers import CLIPVisionConfig, CLIPVisionModel

    revision = config.revision or "main"
    try:
        return CLIPVisionModel.from_pretrained(config.source, revision=revision, **options)
    except (OSError, RuntimeError):
        if not Path(config.source).is_dir():
            found = try_to_load_from_cache(config.source, "config.json", revision=revision)
            if isinstance(found, str):
                _refuse_other_types(config.source, Path(found))
        if config.revision is not None or Path(config.source).is_dir():
            raise
        having = [
            name
            for name, folder in cached_snapshots(config.source).items()
            if any(folder.glob("model*.safetensors"))
        ]
        if not having or revision in having:
            raise
        # Of a conversion transformers keeps the weights alone.
        vision = CLIPVisionConfig.from_pretrained(config.source, revision=revision)
        return CLIPVisionModel.from_pretrained(
            config.source, revision=having[0], config=vision, **options
        )


def _is_timm(config: SemanticConfig) -> bool:
    """Whether timm reads it; a folder's layout overrules ``kind``."""
    path = Path(config.source) / "config.json"
    if not path.is_file():
        return config.kind == "timm"
    with explain_loading("CLIP image encoder", config.source, config.revision):
        return "architecture" in read_json(path)


def _refuse_other_types(source: str, path: Path) -> None:
    found = read_json(path).get("model_type") if path.is_file() else None
    if found not in (None, "clip", "clip_vision_model"):
        raise ValueError(
            f"{source} holds a model of the type {found!r}, expected a CLIP of transformers. "
            "Others, such as SigLIP and DINOv2, are taken from timm, by a model's name or its "
            "folder."
        )


def read_normalisation(config: SemanticConfig) -> dict[str, Any]:
    """What a CLIP's source says of ``image_mean`` and ``image_std``, maybe nothing.

    It stands in ``processor_config.json`` or else ``preprocessor_config.json``, as transformers
    looks for it.

    Raises:
        OSError: A file is damaged, or the hub cannot be asked and was never asked before.
    """
    if not Path(config.source).is_dir() and config.source in bundled_architectures():
        return read_architecture(config.source)
    with explain_loading("CLIP image encoder", config.source, config.revision):
        try:
            path = find_optional_file(config.source, PROCESSOR_FILE, config.revision)
            nested = {} if path is None else read_json(path).get("image_processor")
            unknown = False
        except NeverAskedError:
            # Whoever cached the repository may have asked for the other file alone.
            nested, unknown = {}, True
        if nested:
            return dict(nested)
        path = find_optional_file(config.source, IMAGE_PROCESSOR_FILE, config.revision)
        if unknown:
            warnings.warn(
                f"{PROCESSOR_FILE} of {config.source}, which may say how images are normalised, "
                "was never asked for, and the hub cannot be reached: "
                f"{IMAGE_PROCESSOR_FILE} counts.",
                stacklevel=2,
            )
        return {} if path is None else read_json(path)


def _load_timm(
    config: SemanticConfig, weights: str, dtype: torch.dtype, allow_pickle: bool
) -> TimmVision:
    import timm

    folder = Path(config.source).is_dir()
    name = f"local-dir:{config.source}" if folder else config.source
    if not folder and not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:12]}*")[:5]
        hint = f" Similar names: {', '.join(near)}." if near else ""
        raise ValueError(
            f"timm knows no model {name!r}.{hint} See timm.list_models('vit_*'). A CLIP needs its "
            "folder, or its id 'owner/name' on the hub."
        )
    try:
        with explain_loading("image transformer", name, config.revision):
            safely = weights == "pretrained" and not allow_pickle
            model = timm.create_model(
                name,
                pretrained=weights == "pretrained",
                pretrained_cfg_overlay=_without_pickle(name) if safely else None,
                num_classes=0,
                dynamic_img_size=True,
            )
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        raise ValueError(
            f"{name} has no dynamic_img_size, which lets a timm ViT read images of any size, and "
            "cannot be a semantic branch; choose one such as 'vit_base_patch14_dinov2.lvd142m'."
        ) from error
    if weights == "pretrained":
        _warn_of_activation(name, model.pretrained_cfg)
    return TimmVision(model.to(dtype), config.final_norm).eval()


def _without_pickle(name: str) -> dict[str, str]:
    """What makes timm read no pickled file of a folder; see `timm_safetensors`.

    Raises:
        ValueError: It is known before loading that there are no others; says where they are.
    """
    import timm

    if name.startswith("local-dir:"):
        return timm_safetensors(name)
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.url and not (cfg.hf_hub_id or cfg.file):
        raise ValueError(f"timm has its weights pickled alone, at {cfg.url}.")
    return {}


def _warn_of_activation(name: str, config: Mapping[str, Any]) -> None:
    import timm

    notes = " ".join(config.get("notes") or ())
    if "natively quickgelu" not in notes.lower() or "quickgelu" in name:
        return
    variant = name.replace("clip_", "clip_quickgelu_", 1)
    advice = f"'{variant}'" if timm.is_model(variant) else "timm.list_models('*quickgelu*')"
    warnings.warn(
        f"the weights of {name} were trained with QuickGELU, and timm runs them with GELU under "
        f"this name, which changes the features. Use {advice}.",
        stacklevel=2,
    )
