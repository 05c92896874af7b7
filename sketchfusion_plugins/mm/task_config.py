"""Configs of the four tasks: read, and the encoder that one describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from sketchfusion_plugins.adapter_file import read_config
from sketchfusion_plugins.cache import FeatureStore, use_cache
from sketchfusion_plugins.config import EncoderConfig
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.inference.models import find_config

FOLDER = Path(__file__).parents[1] / "task_configs"


def list_configs() -> dict[str, Path]:
    """Task configs by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("[!_]*.py"))}


def read_task_config(name: str, options: Mapping[str, Any] | None = None) -> Config:
    """Read a task config.

    Args:
        name: Name of one of ours, or path of a ``.py`` file.
        options: What to change, by dotted keys such as ``"train_cfg.max_iters"``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Unknown name, or the file is no task's config.
    """
    configs = list_configs()
    if not name.endswith(".py") and name not in configs:
        raise ValueError(f"no task config {name!r}; choose one of {', '.join(configs)}.")
    config = Config.fromfile(name if name.endswith(".py") else configs[name])
    missing = [part for part in ("task", "encoder", "data") if part not in config]
    if missing:
        raise ValueError(
            f"{name} has no {', '.join(missing)}, so it configures none of the four tasks. Configs "
            "of MMSegmentation train by: sketchfusion mm-train"
        )
    if options:
        config.merge_from_dict(dict(options))
    return config


def encoder_config(config: Mapping[str, Any]) -> EncoderConfig:
    """Configuration of the encoder that a config's ``encoder`` describes, see `build_encoder`.

    Raises:
        OSError: Adapters cannot be found.
        ValueError: Unknown variant or field, or a value that it cannot have.
    """
    if config.get("adapters"):
        begun = read_config(config["adapters"])
    else:
        begun = find_config(config["variant"])
    return begun.replace(**dict(config.get("changes") or {}))


def build_encoder(config: Mapping[str, Any]) -> SketchFusionEncoder:
    """The encoder that a config's ``encoder`` describes.

    Args:
        config: ``variant``, a timm name or preset, with ``changes`` to its fields; or ``adapters``,
            a checkpoint to start from; ``with_cp`` recomputes activations to save memory; ``cache``
            has the ``folder`` and, by choice, the ``limit`` of a `FeatureStore` and what to
            ``keep``, see `sketchfusion_plugins.cache.use_cache`.

    Raises:
        OSError: Foundations or adapters cannot be found.
        ValueError: Unknown variant or field.
    """
    if config.get("adapters"):
        changes = dict(config.get("changes") or {})
        encoder = SketchFusionEncoder.from_pretrained(config["adapters"], **changes)
    else:
        encoder = SketchFusionEncoder(encoder_config(config))
    if config.get("with_cp"):
        encoder.set_grad_checkpointing()
    cache = dict(config.get("cache") or {})
    if cache:
        keep = cache.pop("keep", "foundations")
        use_cache(encoder, FeatureStore(**cache), keep)
    return encoder
