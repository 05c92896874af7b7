"""Models by name: checkpoints, presets, their parts, and plain baselines.

paper, official, sd15, cleandift, small, tiny   presets, with fresh adapters
sketchfusion_base.cleandift, ...                the same by timm name
clip:PRESET, sd:PRESET, sd+clip:PRESET          a preset's foundations; "paper" if none is named
timm:NAME                                       the last map of any timm model
hog, pixels                                     what needs no learning
sketchfusion/tiny                               tiny, with the adapters of this package
sketchfusion/tiny-retrieval                     the same with an embedding head
a folder, or a Hugging Face id                  what save_pretrained wrote
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from sketchfusion_plugins.adapter_file import BUNDLED, read_config, read_image_size, read_task
from sketchfusion_plugins.config import EncoderConfig, Weights
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.features import (
    ClipFeatures,
    ConcatenatedFeatures,
    DiffusionFeatures,
    Features,
    FusedFeatures,
    HogFeatures,
    PixelFeatures,
    TimmFeatures,
)
from sketchfusion_plugins.hub import BUNDLED_WEIGHTS, cached_snapshots
from sketchfusion_plugins.presets import PRESETS
from sketchfusion_plugins.tasks.base import Task
from sketchfusion_plugins.tasks.load import load_task

PARTS: dict[str, Callable[[SketchFusionEncoder], Features]] = {
    "clip": ClipFeatures,
    "sd": DiffusionFeatures,
    "sd+clip": ConcatenatedFeatures,
}
PLAIN: dict[str, Callable[[], Features]] = {"hog": HogFeatures, "pixels": PixelFeatures}
BASE_SIZE = 336
PLAIN_SIZE = 128


def open_model(
    name: str,
    task: str | None = None,
    *,
    weights: Weights = "pretrained",
    device: str | torch.device = "cpu",
    dtype: str | None = None,
    seed: int = 0,
) -> Task | Features:
    """Open a model in eval mode.

    Args:
        name: See this module; what is no name of ours is a folder or a Hugging Face id.
        task: Task that a checkpoint must be of, if it is of any; None accepts all.
        weights: Weights of foundations. Checkpoints have those that they were trained on.
        device: Where to put it.
        dtype: Precision of frozen foundations, ``"float32"`` or ``"bfloat16"``; None keeps the
            model's own.
        seed: Seed of fresh adapters.

    Returns:
        A task for a task's checkpoint, otherwise features.

    Raises:
        CheckpointError: The checkpoint is damaged or does not fit its foundations.
        OSError: Weights cannot be found.
        ValueError: Unknown name, a checkpoint of another task, or a precision where there is none
            to choose.
    """
    if _is_plain(name):
        if dtype not in (None, "float32"):
            raise ValueError(f"{name} computes in float32 alone, got dtype {dtype!r}.")
        model: Task | Features = _open_plain(name, weights)
    elif is_checkpoint(name):
        if weights == "random":
            warnings.warn(
                f"{name} is a checkpoint, whose foundations are those that it was trained on: "
                "random weights are for presets and timm's models. Name a preset for a control.",
                stacklevel=2,
            )
        model = _open_checkpoint(name, task, dtype)
    else:
        config = find_config(_split(name)[1]).replace(weights=weights)
        model = _open_fresh(name, _with_precision(config, dtype), seed)
    return model.eval().to(device)


def is_place(name: str) -> bool:
    """Whether a name can be a folder, which may be missing, or a Hugging Face id."""
    path = Path(name).expanduser()
    return bool(name) and (path.exists() or path.is_absolute() or len(path.parts) > 1)


def is_checkpoint(name: str) -> bool:
    """Whether `open_model` takes a name for a place, being no name of ours.

    Raises:
        ValueError: Neither, or nearly an id of this package.
    """
    from timm_adapters.variants import default_cfgs

    if _is_plain(name):
        return False
    part, preset = _split(name)
    try:
        find_config(preset)
        return False
    except ValueError as error:
        if not part and is_place(name):
            _refuse_misspelt(name)
            return True
        known = [*PRESETS, *default_cfgs]
        near = get_close_matches(preset, known if part else [*known, *PLAIN, *BUNDLED], 2)
        meant = " or ".join(f"{part}:{key}" if part else key for key in near)
        raise ValueError(
            f"no model {name!r}: no such folder, and no name."
            f"{f' Did you mean {meant}?' if meant else ''} Choose a preset ({', '.join(PRESETS)}), "
            f"a timm name of ours ({', '.join(default_cfgs)}), a part of a preset "
            f"({', '.join(f'{key}:tiny' for key in PARTS)}), timm:NAME, {', '.join(PLAIN)}, "
            f"a model of this package ({', '.join(BUNDLED)}), or a folder or Hugging Face id of a "
            "checkpoint."
        ) from error


def find_config(variant: str) -> EncoderConfig:
    """Configuration of a timm name, with or without tag, or of a preset.

    Raises:
        ValueError: Unknown name; the message lists the valid ones.
    """
    from timm_adapters.variants import TAG_PRESETS, default_cfgs

    if variant in PRESETS:
        return PRESETS[variant]
    name, _, tag = variant.partition(".")
    known = {model: list(cfg.tags) for model, cfg in default_cfgs.items()}
    if name in known and (not tag or tag in known[name]):
        return PRESETS[TAG_PRESETS[tag or known[name][0]]]
    names = [f"{model}.{tag}" for model, tags in known.items() for tag in tags]
    raise ValueError(
        f"unknown variant {variant!r}; choose a timm name ({', '.join(known)}, "
        f"{', '.join(names)}) or a preset ({', '.join(PRESETS)})."
    )


def config_of(name: str, weights: Weights = "pretrained") -> EncoderConfig:
    """Configuration of the encoder of a checkpoint, a preset, or a preset's part.

    Raises:
        CheckpointError: The checkpoint is damaged.
        OSError: There is none.
        ValueError: The name's model has no SketchFusion encoder.
    """
    if _is_plain(name):
        raise ValueError(f"{name} has no Stable Diffusion and CLIP inside. Name a SketchFusion.")
    if is_checkpoint(name):
        return read_config(name)
    return find_config(_split(name)[1]).replace(weights=weights)


def fresh_encoder(config: EncoderConfig, seed: int = 0) -> SketchFusionEncoder:
    """An encoder whose adapters are drawn from a seed alone; the global generator stays."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return SketchFusionEncoder(config)


def default_size(name: str) -> int:
    """Side, in pixels, of the images that a model is made for.

    A task's checkpoint says what it was trained on; for others it follows from the foundations.

    Raises:
        CheckpointError: The checkpoint is damaged.
        OSError: There is none.
        ValueError: Unknown name.
    """
    from timm_adapters.variants import TAG_PRESETS, default_cfgs

    if name.startswith("timm:"):
        return int(_timm_config(name)["input_size"][-1])
    if name in PLAIN:
        return PLAIN_SIZE
    trained_on = read_image_size(name) if is_checkpoint(name) else None
    if trained_on is not None:
        return trained_on
    source = config_of(name).diffusion.source
    for cfg in default_cfgs.values():
        for tag, values in cfg.cfgs.items():
            if PRESETS[TAG_PRESETS[tag]].diffusion.source == source:
                return int(values.input_size[-1])
    return BASE_SIZE


def _split(name: str) -> tuple[str, str]:
    """Part and preset of a name: ``"clip:tiny"`` is ("clip", "tiny"), ``"tiny"`` ("", "tiny")."""
    part, _, preset = name.partition(":")
    if part in PARTS:
        return part, preset or "paper"
    return "", name


def _refuse_misspelt(name: str) -> None:
    """Refuse what is nearly a packaged id and nowhere on this machine.

    The hub would be asked again and again before it failed. What is a repository there is usable
    once it is cached.
    """
    path = Path(name).expanduser()
    if name in BUNDLED_WEIGHTS or path.is_absolute() or path.exists():
        return
    near = get_close_matches(name, BUNDLED, 1, 0.8)
    if near and not cached_snapshots(name):
        raise ValueError(
            f"no model {name!r}: no such folder, and not among the models of this package "
            f"({', '.join(BUNDLED)}). Did you mean {near[0]}? If it is a repository on the hub, "
            f"fetch it first: hf download {name}"
        )


def _is_plain(name: str) -> bool:
    return name in PLAIN or name.startswith("timm:")


def _open_plain(name: str, weights: Weights) -> Features:
    if name in PLAIN:
        return PLAIN[name]()
    config = _timm_config(name)
    # Only transformers need images of one size; timm tells them so.
    size = int(config["input_size"][-1]) if config.get("fixed_input_size") else None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return TimmFeatures(name.removeprefix("timm:"), weights == "pretrained", size)


def _timm_config(name: str) -> dict[str, Any]:
    import timm

    architecture = name.removeprefix("timm:")
    if not timm.is_model(architecture):
        bare = architecture.partition(".")[0]
        close = timm.list_models(f"*{bare}*")[:5] if bare else []
        hint = f"Similar: {', '.join(close)}." if close else "See timm.list_models()."
        raise ValueError(f"timm has no model {architecture!r}. {hint}")
    config = timm.get_pretrained_cfg(architecture)
    return dict(config.to_dict()) if config is not None else {"input_size": (3, 224, 224)}


def _open_checkpoint(name: str, task: str | None, dtype: str | None) -> Task | Features:
    described = read_task(name)
    changes: dict[str, Any] = {} if dtype is None else {"foundation_dtype": dtype}
    if described is None:
        return FusedFeatures(SketchFusionEncoder.from_pretrained(name, **changes))
    if task is not None and described[0] != task:
        raise ValueError(
            f"{name} was trained for {described[0]}, expected a checkpoint of {task}. "
            f"Train one with: sketchfusion train {task} --model {name}"
        )
    return load_task(name, **changes)


def _open_fresh(name: str, config: EncoderConfig, seed: int) -> Features:
    part, _ = _split(name)
    encoder = fresh_encoder(config, seed)
    if part:
        return PARTS[part](encoder)
    warnings.warn(
        f"injection and aggregation of {name!r} are untrained, drawn from seed {seed}. Name a "
        "checkpoint to use trained ones; 'sketchfusion/tiny' is part of the package.",
        stacklevel=3,
    )
    return FusedFeatures(encoder)


def _with_precision(config: EncoderConfig, dtype: str | None) -> EncoderConfig:
    return config if dtype is None else config.replace(foundation_dtype=dtype)
