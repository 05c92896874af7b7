"""Every shipped config parses and builds; some train on miniature data with mmseg's own script."""

from __future__ import annotations

import copy
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

pytest.importorskip("mmseg")

import mmseg
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from mmseg.visualization import SegLocalVisualizer
from PIL import Image
from safetensors.torch import save_file

FOLDER = Path(__file__).parents[2] / "mmseg_configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
SCHEDULES = sorted(path.stem for path in (FOLDER / "_base_" / "schedules").glob("*.py"))
TOOLS = Path(mmseg.__file__).parent / ".mim" / "tools"
TINY = {
    "variant": "sketchfusion_tiny",
    "weights": "random",
    "foundation_dtype": "float32",
}


def with_tiny_foundations(config: Config) -> Config:
    """The config with our smallest foundations, whose levels have other widths."""
    config = copy.deepcopy(config)
    config.model.backbone.update(TINY)
    config.model.neck.in_channels = [96, 144, 144]
    return config


def test_the_promised_configs_are_there() -> None:
    for size, side in (("tiny", 128), ("base", 336)):
        for head in ("fpn", "upernet", "linear"):
            for data in ("openmoji", "spg", "folder"):
                assert f"{size}_{head}_{data}_{side}" in NAMES
            assert size == "tiny" or f"{size}_{head}_ade20k_512" in NAMES
    assert set(SCHEDULES) == {"adapters_and_head", "adapters_only", "full", "linear_probe"}


@pytest.mark.parametrize("name", NAMES)
def test_config_says_what_it_does_and_builds(name: str) -> None:
    path = FOLDER / f"{name}.py"
    header = path.read_text().split('"""')[1]
    assert header.startswith("Trains ")
    assert "Cost: " in header
    config = Config.fromfile(path)
    assert config.custom_imports.imports == ["sketchfusion_plugins.mm"]
    init_default_scope("mmseg")
    config.model.backbone.weights = "random"
    with torch.device("meta"):
        model = MODELS.build(config.model)
    state = model.state_dict()
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert size < (10e6 if name.startswith("tiny") else 100e6)
    assert not any(".diffusion." in key or ".semantic." in key for key in state)
    count = model.decode_head.num_classes
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert loader.dataset.get("num_classes", count) == count


@pytest.mark.parametrize("name", [name for name in NAMES if "openmoji" in name or "ade" in name])
def test_one_step_with_tiny_foundations(name: str, segmentor_inputs: dict[str, Any]) -> None:
    config = with_tiny_foundations(Config.fromfile(FOLDER / f"{name}.py"))
    init_default_scope("mmseg")
    model = MODELS.build(config.model).train()
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    losses = model.train_step(segmentor_inputs, wrapper)
    assert torch.isfinite(losses["loss"])


@pytest.fixture
def segmentor_inputs() -> dict[str, Any]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo={"img_shape": (64, 64), "ori_shape": (64, 64)})
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 5, (1, 64, 64)))
    pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    return {"inputs": [pixels] * 2, "data_samples": [sample] * 2}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_move_what_they_say(schedule: str, segmentor_inputs: dict[str, Any]) -> None:
    config = Config.fromfile(FOLDER / "tiny_fpn_openmoji_128.py")
    schedule_config = Config.fromfile(FOLDER / "_base_" / "schedules" / f"{schedule}.py")
    config.model.backbone.freeze_foundations = schedule != "full"
    init_default_scope("mmseg")
    model = MODELS.build(config.model).train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    wrapper = build_optim_wrapper(model, schedule_config.optim_wrapper)
    # Twice: injection starts at zero, which keeps gradient from what comes before it.
    for _ in range(2):
        model.train_step(segmentor_inputs, wrapper)
    moved = {
        name for name, value in model.named_parameters() if not torch.equal(value, before[name])
    }
    expected = {
        "linear_probe": {"decode_head"},
        "adapters_only": {"injector", "neck"},
        "adapters_and_head": {"injector", "neck", "decode_head"},
        "full": {"injector", "neck", "decode_head", "diffusion", "semantic"},
    }[schedule]
    parts = ("injector", "neck", "decode_head", "diffusion", "semantic")
    assert {part for part in parts if any(part in name for name in moved)} == expected


def write_miniature(folder: Path, classes: int) -> None:
    """Six sketches of 64 px: a dark box, labelled 1, on paper, labelled 0."""
    generator = np.random.default_rng(0)
    names = [f"{split}_{index}" for split in ("train", "val") for index in range(3)]
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
    for name in names:
        split = name.split("_")[0]
        image = np.full((64, 64, 3), 255, np.uint8)
        mask = np.zeros((64, 64), np.uint8)
        row, column = generator.integers(0, 30, 2)
        image[row : row + 30, column : column + 30] = 40
        mask[row : row + 30, column : column + 30] = 1
        Image.fromarray(image).save(folder / "images" / split / f"{name}.png")
        Image.fromarray(mask).save(folder / "annotations" / split / f"{name}.png")
    labels = [f"box: part {index}" for index in range(classes)]
    (folder / "meta.json").write_text(json.dumps({"classes": labels}))
    (folder / "points").mkdir()
    save_file(
        {
            "xy": torch.full((6, 2), 20.0),
            "stroke": torch.tensor([0, 1] * 3),
            "label": torch.tensor([0, 1] * 3),
            "offset": torch.tensor([0, 2, 4, 6]),
        },
        folder / "points" / "val.safetensors",
        {"names": json.dumps(["val_0", "val_1", "val_2"])},
    )


@pytest.fixture
def run_tool(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run one of mmseg's own scripts, unmodified, on data in a folder; returns its log."""

    def run(
        name: str, data: Path, work: Path, *arguments: str, tool: str = "train.py", **options: Any
    ) -> str:
        loaders = ("train_dataloader", "val_dataloader", "test_dataloader")
        options = {
            **{f"{loader}.dataset.data_root": data for loader in loaders},
            **{f"{loader}.num_workers": 0 for loader in loaders},
            **{f"{loader}.persistent_workers": False for loader in loaders},
            "train_dataloader.batch_size": 2,
            "train_cfg.max_iters": 2,
            "train_cfg.val_interval": 2,
            "default_hooks.checkpoint.interval": 2,
            "default_hooks.logger.interval": 1,
            "randomness.seed": 0,
            # Runners are told apart by name, which otherwise is the second that they start in.
            "experiment_name": uuid4().hex,
            **{key.replace("__", "."): value for key, value in options.items()},
        }
        if name.startswith("base"):
            options |= {f"model.backbone.{key}": value for key, value in TINY.items()}
            options["model.neck.in_channels"] = "[96,144,144]"
        command = [tool, str(FOLDER / f"{name}.py"), *arguments, "--work-dir", str(work)]
        command += ["--cfg-options", *(f"{key}={value}" for key, value in options.items())]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setenv("LOCAL_RANK", "0")
        # A process has one visualiser, which keeps the folder it was made for.
        SegLocalVisualizer._instance_dict.clear()
        capfd.readouterr()
        runpy.run_path(str(TOOLS / tool), run_name="__main__")
        return "".join(capfd.readouterr())

    return run


@pytest.mark.parametrize(
    ("name", "classes"),
    [("tiny_linear_folder_128", 2), ("base_fpn_openmoji_336", 5), ("base_upernet_spg_336", 86)],
)
def test_trains_and_validates_with_mmsegs_script(
    run_tool: Callable[..., str], name: str, classes: int, tmp_path: Path
) -> None:
    write_miniature(tmp_path / "data", classes)
    options = {}
    if "spg" in name:
        options["val_evaluator__1__points"] = tmp_path / "data/points/val.safetensors"
        options["test_evaluator__1__points"] = tmp_path / "data/points/val.safetensors"
    log = run_tool(name, tmp_path / "data", tmp_path / "work", **options)
    assert "mIoU: " in log
    assert ("stroke/P: " in log) == ("spg" in name)
    saved = torch.load(tmp_path / "work/iter_2.pth", weights_only=False, map_location="cpu")
    assert not any(".diffusion." in key for key in saved["state_dict"])


def test_resumed_run_equals_the_whole_one(run_tool: Callable[..., str], tmp_path: Path) -> None:
    write_miniature(tmp_path / "data", 5)
    name, data = "tiny_linear_openmoji_128", tmp_path / "data"
    # The random state of augmentation is no part of mmengine's checkpoints.
    still = {"train_dataloader__dataset__pipeline__2__prob": 0.0}
    run_tool(name, data, tmp_path / "whole", train_cfg__max_iters=4, **still)
    run_tool(name, data, tmp_path / "parts", **still)
    log = run_tool(name, data, tmp_path / "parts", "--resume", train_cfg__max_iters=4, **still)
    assert "resumed epoch: 0, iter: 2" in log
    states = [
        torch.load(tmp_path / folder / "iter_4.pth", weights_only=False)["state_dict"]
        for folder in ("whole", "parts")
    ]
    assert set(states[0]) == set(states[1])
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, msg=key)


def test_trained_checkpoint_serves_mmsegs_inference(
    run_tool: Callable[..., str], tmp_path: Path
) -> None:
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    write_miniature(tmp_path / "data", 5)
    name, work = "tiny_fpn_openmoji_128", tmp_path / "work"
    run_tool(name, tmp_path / "data", work)
    checkpoint, config = str(work / "iter_2.pth"), str(work / f"{name}.py")
    image = str(tmp_path / "data/images/val/val_0.png")

    shown = (checkpoint, "--show-dir", str(tmp_path / "shown"))
    log = run_tool(name, tmp_path / "data", work, *shown, tool="test.py")
    assert "mIoU: " in log
    assert len(list((tmp_path / "shown").rglob("*.png"))) == 3

    model = init_model(config, checkpoint, device="cpu")
    result = inference_model(model, image).pred_sem_seg.data
    assert result.shape == (1, 64, 64)

    inferencer = MMSegInferencer(config, weights=checkpoint, device="cpu")
    pictures = tmp_path / "pictures"
    other = inferencer(image, out_dir=str(pictures), show=False)["predictions"]
    assert (other == result[0].numpy()).all()
    assert list(pictures.rglob("*.png"))


def test_config_of_ones_own_with_all_switches(run_tool: Callable[..., str], tmp_path: Path) -> None:
    """Moving average, gradient accumulation, activation checkpointing, bf16 trunk, layer decay."""
    write_miniature(tmp_path / "data", 2)
    bases = ("models/tiny_fpn", "datasets/folder_128", "schedules/adapters_and_head")
    paths = [str(FOLDER / "_base_" / f"{base}.py") for base in (*bases, "default_runtime")]
    backbone = {"with_cp": True, "foundation_dtype": "bfloat16"}
    model = {"backbone": backbone, "decode_head": {"num_classes": 2}}
    wrapper = {"accumulative_counts": 2, "paramwise_cfg": {"layer_decay_rate": 0.8}}
    own = tmp_path / "own.py"
    own.write_text(
        f"_base_ = {paths!r}\nmodel = {model!r}\noptim_wrapper = {wrapper!r}\n"
        'custom_hooks = [dict(type="EMAHook", update_buffers=True)]\n'
    )
    run_tool(str(own.with_suffix("")), tmp_path / "data", tmp_path / "work")
    saved = torch.load(tmp_path / "work/iter_2.pth", weights_only=False, map_location="cpu")
    averaged = {key.removeprefix("module.") for key in saved["ema_state_dict"]} - {"steps"}
    assert averaged == set(saved["state_dict"])
    log = run_tool(
        str(own.with_suffix("")),
        tmp_path / "data",
        tmp_path / "work",
        "--resume",
        train_cfg__max_iters=4,
    )
    assert "resumed epoch: 0, iter: 2" in log
