"""mmseg, imported once; a segmentor on small foundations; miniature data; mmseg's own scripts."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image

CONFIGS = Path(__file__).parents[2] / "mmseg_configs"
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
SIDE = 64


@pytest.fixture(autouse=True)
def mm_registries() -> Iterator[None]:
    """mmseg's modules registered, and its default scope left as it was."""
    pytest.importorskip("mmseg")
    # Before mmseg's modules: it makes up for compiled operations that mmcv-lite lacks.
    import sketchfusion_plugins.mm  # noqa: F401, I001
    from mmengine.registry import DefaultScope
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    scopes = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


@pytest.fixture
def segmentor_config(config: Any) -> Callable[..., dict[str, Any]]:
    """Config of an mmseg segmentor: our backbone on the small folders, a pyramid, an FPN head."""

    def make(backbone: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        return {
            "type": "mmseg.EncoderDecoder",
            "data_preprocessor": {
                "type": "mmseg.SegDataPreProcessor",
                "mean": [127.5] * 3,
                "std": [127.5] * 3,
                "bgr_to_rgb": True,
                "pad_val": 1,
                "seg_pad_val": 255,
                "size": (64, 64),
            },
            "backbone": {"type": "SketchFusion", "config": config.to_dict(), **(backbone or {})},
            "neck": {
                "type": "AdaptivePyramidNeck",
                "in_channels": [64, 64, 64],
                "out_channels": 32,
                "norm_groups": 8,
                "frequency_bands": 3,
            },
            "decode_head": {
                "type": "mmseg.FPNHead",
                "in_channels": [32] * 4,
                "in_index": [0, 1, 2, 3],
                "feature_strides": [4, 8, 16, 32],
                "channels": 16,
                "num_classes": 4,
                "dropout_ratio": 0.0,
                "norm_cfg": {"type": "GN", "num_groups": 4},
                "align_corners": False,
            },
            "test_cfg": {"mode": "whole"},
            **changes,
        }

    return make


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of six tiny pictures, shaped like the data set that a config's name says."""
    folders: dict[str, Path] = {}

    def write(name: str) -> Path:
        kind = next(k for k in ("openmoji", "spg", "folder", "ade20k") if f"_{k}" in name)
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            if kind == "ade20k":
                _write_ade20k(folders[kind])
            elif kind == "spg":
                _write_spg(folders[kind])
            else:
                _write_parts(folders[kind], 5 if kind == "openmoji" else 2)
        return folders[kind]

    return write


def _write_parts(folder: Path, classes: int) -> None:
    """A dark box, labelled 1, on paper, labelled 0."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for index in range(3):
            image = np.full((SIDE, SIDE, 3), 255, np.uint8)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            row, column = generator.integers(0, 30, 2)
            image[row : row + 30, column : column + 30] = 40
            mask[row : row + 30, column : column + 30] = 1
            _write(image, folder / f"images/{split}/{split}_{index}.png")
            _write(mask, folder / f"annotations/{split}/{split}_{index}.png")
    labels = [f"part {index}" for index in range(classes)]
    (folder / "meta.json").write_text(json.dumps({"classes": labels}))


def _write_spg(folder: Path) -> None:
    """A box and a diagonal across it, of a category with 86 parts; vectors."""
    steps = np.arange(0, 200, 10)
    zero, full = np.zeros_like(steps), np.full_like(steps, 200)
    box = [(steps, zero), (full, steps), (200 - steps, full), (zero, 200 - steps), (steps, steps)]
    xy = np.concatenate([np.stack(side, 1) for side in box]).astype(np.int16)
    stroke = np.repeat(np.array([0, 0, 0, 0, 1], np.int16), len(steps))
    np.savez(
        folder / "spg_strokes.npz",
        xy=np.tile(xy, (6, 1)),
        stroke=np.tile(stroke, 6),
        part=np.tile(stroke, 6).astype(np.uint8),
        offset=np.arange(7) * len(xy),
    )
    rows = [f"{i},box,{'train' if i < 3 else 'valid'},7,2" for i in range(6)]
    header = "index,class,split,quickdraw_key_id,strokes"
    (folder / "spg.csv").write_text("\n".join([header, *rows]) + "\n")
    parts = [f"part {index}" for index in range(86)]
    (folder / "parts.json").write_text(json.dumps({"box": parts}))


def _write_ade20k(folder: Path) -> None:
    """Noise, labelled 0 (for none) to 150."""
    generator = np.random.default_rng(0)
    for split in ("training", "validation"):
        for index in range(3):
            name = f"ADE_{split}_{index}"
            image = generator.integers(0, 256, (SIDE, 80, 3), np.uint8)
            labels = generator.integers(0, 151, (4, 5), np.uint8)
            _write(image, folder / f"images/{split}/{name}.jpg")
            _write(
                np.kron(labels, np.ones((16, 16), np.uint8)),
                folder / f"annotations/{split}/{name}.png",
            )


def _write(pixels: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def shrink() -> Callable[[str, Path], dict[str, Any]]:
    """Options that make a config train for two iterations on a miniature."""
    return _shrink


def _shrink(name: str, data: Path) -> dict[str, Any]:
    from mmengine.config import Config

    config = Config.fromfile(CONFIGS / f"{name}.py", import_custom_modules=False)
    options: dict[str, Any] = {
        "train_dataloader.batch_size": 2,
        "train_cfg.max_iters": 2,
        "train_cfg.val_interval": 2,
        "default_hooks.checkpoint.interval": 2,
        "default_hooks.logger.interval": 1,
        "randomness.seed": 0,
        "model.backbone.weights": "random",
        # Runners are told apart by name, which otherwise is the second that they start in.
        "experiment_name": uuid4().hex,
    }
    for loader in LOADERS:
        if "renderer" in config[loader].dataset:
            options[f"{loader}.dataset.renderer.size"] = SIDE
        options[f"{loader}.dataset.data_root"] = data
        options[f"{loader}.num_workers"] = 0
        options[f"{loader}.persistent_workers"] = False
        for index, step in enumerate(config[loader].dataset.pipeline):
            where = f"{loader}.dataset.pipeline.{index}"
            if "scale" in step:
                options[f"{where}.scale"] = f"({2 * SIDE},{SIDE})"
            if "crop_size" in step:
                options[f"{where}.crop_size"] = f"({SIDE},{SIDE})"
            if "size" in step:
                options[f"{where}.size"] = SIDE
    if "base" in Path(name).name:
        options["model.backbone.variant"] = "sketchfusion_tiny"
        options["model.backbone.foundation_dtype"] = "float32"
        options["model.neck.in_channels"] = "[96,144,144]"
    return options


@pytest.fixture
def run_tool(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run one of mmseg's own scripts, unmodified, on data in a folder; returns its log."""
    import mmseg
    from mmengine.visualization import Visualizer
    from mmseg.visualization import SegLocalVisualizer

    from sketchfusion_plugins.mm.visualizer import PictureVisualizer

    tools = Path(mmseg.__file__).parent / ".mim" / "tools"

    def run(
        name: str, data: Path, work: Path, *arguments: str, tool: str = "train.py", **changes: Any
    ) -> str:
        options = _shrink(name, data)
        options |= {key.replace("__", "."): value for key, value in changes.items()}
        command = [tool, str(CONFIGS / f"{name}.py"), *arguments, "--work-dir", str(work)]
        command += ["--cfg-options", *(f"{key}={value}" for key, value in options.items())]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setenv("LOCAL_RANK", "0")
        # Visualisers keep the folder they were made for, and hooks take the one made last.
        for visualizer in (PictureVisualizer, SegLocalVisualizer, Visualizer):
            visualizer._instance_dict.clear()
        capfd.readouterr()
        runpy.run_path(str(tools / tool), run_name="__main__")
        return "".join(capfd.readouterr())

    return run
