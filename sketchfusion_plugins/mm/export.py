"""A trained segmentor with its foundations in one checkpoint, for mmseg's own inference.

Training checkpoints leave the frozen foundations out. A merged one needs neither hub nor local
foundations: its config builds the same architecture with random weights, and the checkpoint
replaces them all. It is a ``.pth`` file because mmseg's ``init_model`` reads no other kind; holding
tensors and plain values alone, it can be read with ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sketchfusion_plugins.adapter_file import CheckpointError
from sketchfusion_plugins.config import EncoderConfig
from sketchfusion_plugins.files import replacing, write_text
from sketchfusion_plugins.hub import (
    bundled_architectures,
    explain_loading,
    read_json,
)
from sketchfusion_plugins.mm.backbone import SketchFusion
from sketchfusion_plugins.mm.safe_loading import read_checkpoint
from sketchfusion_plugins.semantic_loading import IMAGE_PROCESSOR_FILE, read_normalisation

CONFIG_FILE = "config.py"
WEIGHTS_FILE = "model.pth"
# mmengine puts the folder of a config file in its place.
HERE = "{{ fileDirname }}"
DIFFUSION_FILES = ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
SEMANTIC_FILES = ("config.json", IMAGE_PROCESSOR_FILE)


def export_merged(config: str | Path, checkpoint: str | Path, out: str | Path) -> tuple[Path, Path]:
    """Write ``config.py`` and ``model.pth``; ``init_model`` of both needs no other weights.

    Foundations whose architecture this package does not know by name (a local folder, another
    repository) get their JSON files copied into the same folder.

    Args:
        config: Config that the checkpoint was trained with.
        checkpoint: Checkpoint that mmengine wrote.
        out: Folder to write.

    Returns:
        Paths of config and checkpoint.

    Raises:
        CheckpointError: The checkpoint is damaged, or does not fit the config.
        OSError: Checkpoint or foundations cannot be loaded, or the folder not be written.
        ValueError: The config's backbone is not `SketchFusion`.
    """
    from mmengine.config import Config
    from mmengine.runner.checkpoint import load_state_dict
    from mmseg.apis import init_model

    out = Path(out)
    saved = read_checkpoint(checkpoint)
    model = init_model(str(config), device="cpu")
    backbone = model.backbone
    if not isinstance(backbone, SketchFusion):
        raise ValueError(
            f"expected a config whose backbone is SketchFusion, got {type(backbone).__name__} in "
            f"{config}. Export the config that the checkpoint was trained with."
        )
    try:
        load_state_dict(model, saved["state_dict"], strict=True)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise CheckpointError(f"{checkpoint} does not fit {config}: {reason}") from error
    merged = Config.fromfile(str(config))
    merged.load_from, merged.resume = None, False
    merged.model.backbone = {
        "type": "SketchFusion",
        "config": _portable(backbone.encoder.config, out).to_dict(),
    }
    state = {**model.state_dict(), **backbone.full_state_dict("backbone.")}
    meta = {"dataset_meta": saved.get("meta", {}).get("dataset_meta"), "cfg": merged.pretty_text}
    with replacing(out / WEIGHTS_FILE) as temporary:
        torch.save({"meta": meta, "state_dict": state}, temporary)
    # Last: a folder with a config is a whole one.
    write_text(merged.pretty_text, out / CONFIG_FILE)
    return out / CONFIG_FILE, out / WEIGHTS_FILE


def _portable(config: EncoderConfig, out: Path) -> EncoderConfig:
    """The configuration with random weights, of architectures that are always at hand."""
    changes: dict[str, Any] = {"weights": "random", "diffusion__unet_file": None}
    branches = {"diffusion": DIFFUSION_FILES, "semantic": SEMANTIC_FILES}
    for name, files in branches.items():
        branch = getattr(config, name)
        by_name = branch.source in bundled_architectures() or getattr(branch, "kind", "") == "timm"
        if by_name and not Path(branch.source).is_dir():
            continue
        for file in files:
            if file == IMAGE_PROCESSOR_FILE:
                content = read_normalisation(branch)
            else:
                content = _read_file(branch.source, branch.revision, file)
            if content:
                write_text(json.dumps(content, indent=2) + "\n", out / name / file)
        changes[f"{name}__source"] = f"{HERE}/{name}"
        changes[f"{name}__revision"] = changes[f"{name}__variant"] = None
    return config.replace(**changes)


def _read_file(source: str, revision: str | None, file: str) -> dict[str, Any]:
    folder = Path(source)
    with explain_loading("architecture", source, revision):
        if folder.is_dir():
            return read_json(folder / file)
        from huggingface_hub import hf_hub_download

        return read_json(Path(hf_hub_download(source, file, revision=revision)))
