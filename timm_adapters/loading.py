"""Which weights a timm model is asked for: what timm's options, mixed as they may be, come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg
from timm.models._builder import resolve_pretrained_cfg

from sketchfusion_plugins.adapter_file import (
    WEIGHTS_FILE,
    CheckpointError,
    locate,
    read_config,
)
from sketchfusion_plugins.config import EncoderConfig
from sketchfusion_plugins.hub import BUNDLED_WEIGHTS

TINY = "sketchfusion/tiny"
_TINY_ADAPTERS = str(BUNDLED_WEIGHTS[TINY] / WEIGHTS_FILE)
# timm's name for a whole state dict.
_WHOLE_FILE = "model.safetensors"


@dataclass(frozen=True)
class Plan:
    """Where the weights of a timm model come from.

    Attributes:
        cfg: timm's, with the caller's changes.
        overlay: What makes timm's own cfg this one.
        exported: Whether the weights are a whole state dict that timm wrote.
        named: Where the caller said that they are, for a message.
        saved: Configuration of the adapters that the caller named; None where none were.
    """

    cfg: PretrainedCfg
    overlay: Mapping[str, Any]
    exported: bool
    named: str
    saved: EncoderConfig | None = None

    @property
    def bundled(self) -> bool:
        """Whether the adapters are those of the package."""
        return bool(self.cfg.file == _TINY_ADAPTERS)


def plan_loading(
    variant: str,
    pretrained: bool,
    pretrained_cfg: Any = None,
    overlay: Mapping[str, Any] | None = None,
    configured: bool = False,
) -> Plan:
    """Find out which weights are meant.

    Args:
        variant: Name of the model, as timm's entry points get it.
        pretrained: See `timm.create_model`.
        pretrained_cfg: As above.
        overlay: As above, ``pretrained_cfg_overlay``.
        configured: Whether the caller gave a configuration, which adapters then need not bring.

    Raises:
        CheckpointError: A file that was named holds no adapters.
        OSError: Weights are wanted of a place that has none, or that cannot be reached.
        ValueError: Adapters of a backbone that no timm model can be made from.
    """
    given = resolve_pretrained_cfg(variant, pretrained_cfg)
    exported = _is_exported(given, pretrained)
    # timm takes a file named by the caller for a whole state dict; ours hold adapters, and a check.
    changes = {"custom_load": False if exported else "hf", **(overlay or {})}
    if changes.get("hf_hub_id") or changes.get("url"):
        # timm prefers a file, which would be the packaged one.
        changes.setdefault("file", None)
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, changes)
    plan = Plan(cfg, changes, exported, str(cfg.hf_hub_id or cfg.file or cfg.url))
    in_place = plan.cfg.source in ("local-dir", "hf-hub")
    if exported or not (in_place or (pretrained and not plan.bundled)):
        return plan
    adapters = _find_adapters(plan.cfg)
    if adapters is None:
        return plan
    changes |= {"source": None, "file": str(adapters)}
    saved = _read_config(adapters)
    if not configured:
        _refuse_levels(adapters, saved)
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, changes)
    return Plan(cfg, changes, False, plan.named, saved)


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
