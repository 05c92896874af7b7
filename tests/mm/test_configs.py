"""Every shipped config parses, builds, trains and validates, on miniature data."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmseg")

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmseg.registry import MODELS
from torch import nn
from typer.testing import CliRunner

from sketchfusion_plugins.cli import app

FOLDER = Path(__file__).parents[2] / "mmseg_configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
SCHEDULES = sorted(
    path.stem for path in (FOLDER / "_base_/schedules").glob("*.py") if path.stem[-1] != "k"
)


def test_the_promised_configs_are_there() -> None:
    for size, side in (("tiny", 128), ("base", 336)):
        for head in ("fpn", "upernet", "linear"):
            for data in ("openmoji", "spg", "folder"):
                assert f"{size}_{head}_{data}_{side}" in NAMES
            assert size == "tiny" or f"{size}_{head}_ade20k_512" in NAMES
    assert set(SCHEDULES) == {"adapters_only", "adapters_and_head", "full", "linear_probe"}


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
    stated = re.search(r"weights ([\d.]+) MB", header)
    assert stated
    assert size / 1e6 == pytest.approx(float(stated[1]), rel=0.05)
    assert not any(".diffusion." in key or ".semantic." in key for key in state)
    count = model.decode_head.num_classes
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert loader.dataset.get("num_classes", count) == count


@pytest.fixture
def segmentor_inputs() -> dict[str, Any]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo={"img_shape": (64, 64), "ori_shape": (64, 64)})
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 5, (1, 64, 64)))
    # Two pictures: of one alone, a batch norm after pooling to a cell has no gradient.
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    return {"inputs": list(pixels), "data_samples": [sample] * 2}


def build_rates(config: Config, wrapper: Any) -> list[Any]:
    return [
        PARAM_SCHEDULERS.build({**scheduler, "optimizer": wrapper})
        for scheduler in config.param_scheduler
    ]


def step_together(rates: list[Any]) -> None:
    for scheduler in rates:
        scheduler.step()


@pytest.mark.parametrize("path", (FOLDER / "_base_/schedules").glob("*.py"), ids=lambda p: p.stem)
def test_a_rate_of_zero_stays_zero(path: Path) -> None:
    config = Config.fromfile(path)
    frozen, free = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups = [{"params": [frozen], "lr": 0.0}, {"params": [free], "lr": 1.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    wrapper = OptimWrapper(optimizer)
    rates = build_rates(config, wrapper)
    wrapper.step()
    end = config.train_cfg.max_iters
    assert max(scheduler.end for scheduler in rates) == end
    seen = []
    for _ in range(end):
        step_together(rates)
        seen.append([group["lr"] for group in optimizer.param_groups])
    still, moving = zip(*seen, strict=True)
    assert set(still) == {0.0}
    assert max(moving) == pytest.approx(1.0)
    assert 0 <= moving[-1] < 1e-3


@pytest.mark.parametrize("head", ["fpn", "upernet", "linear"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_move_what_they_say(
    schedule: str, head: str, segmentor_inputs: dict[str, Any]
) -> None:
    config = Config.fromfile(FOLDER / f"tiny_{head}_openmoji_128.py")
    schedule_config = Config.fromfile(FOLDER / "_base_" / "schedules" / f"{schedule}.py")
    config.model.backbone.freeze_foundations = schedule != "full"
    config.model.backbone.weights = "random"
    init_default_scope("mmseg")
    model = MODELS.build(config.model).train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    wrapper = build_optim_wrapper(model, schedule_config.optim_wrapper)
    rates = build_rates(schedule_config, wrapper)
    # Twice: injection starts at zero, which keeps gradient from what comes before it. And once
    # after the warm-up, where the decay begins.
    for steps in (1, 200, 0):
        model.train_step(segmentor_inputs, wrapper)
        for _ in range(steps):
            step_together(rates)
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
    # As whole words: UPerNet's head has bottlenecks.
    assert {part for part in parts if any(part in name.split(".") for name in moved)} == expected
    inside = {"decode_head", "neck", "injector"} & expected
    still = [name for name in before if inside & set(name.split(".")) and name not in moved]
    assert not still, "all of a part that trains does"
    # Nothing is computed for what is held fixed.
    asked = {name for name, value in model.named_parameters() if value.requires_grad}
    assert {part for part in parts if any(part in name.split(".") for name in asked)} == expected
    names = {id(value): name for name, value in model.named_parameters()}
    for group in wrapper.optimizer.param_groups:
        for value in group["params"]:
            assert (group["weight_decay"] == 0) == (value.ndim == 1), names[id(value)]


def test_a_key_s_own_decay_counts_and_rules_may_be_left_out() -> None:
    from torch import nn

    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    wrapper = build_optim_wrapper(
        model,
        {
            "constructor": "AdapterOptimWrapperConstructor",
            "optimizer": {"type": "AdamW", "lr": 1.0, "weight_decay": 0.5},
            "paramwise_cfg": {
                "norm_decay_mult": None,
                "bias_decay_mult": 0.0,
                "custom_keys": {"0.": {"weight_decay": 0.3}, "1.": {"lr_mult": 0.1}},
            },
        },
    )
    decays = {
        id(value): group["weight_decay"]
        for group in wrapper.optimizer.param_groups
        for value in group["params"]
    }
    found = {name: decays[id(value)] for name, value in model.named_parameters()}
    assert found == {"0.weight": 0.3, "0.bias": 0.3, "1.weight": 0.5, "1.bias": 0.0}


def test_what_nothing_trains_is_refused_and_left_as_it_was() -> None:
    from torch import nn

    model = nn.Linear(2, 2)
    options: dict[str, Any] = {
        "constructor": "AdapterOptimWrapperConstructor",
        "optimizer": {"type": "AdamW", "lr": 1.0},
        "paramwise_cfg": {"custom_keys": {"": {"lr_mult": 0.0}}},
    }
    with pytest.raises(ValueError, match="nothing would train"):
        build_optim_wrapper(model, options)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_trains_and_validates_with_mmsegs_script(
    run_tool: Callable[..., str], miniature: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    log = run_tool(name, miniature(name), tmp_path)
    losses = [float(loss) for loss in re.findall(r"\bloss: (\S+)", log)]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert "mIoU: " in log
    assert ("stroke/P: " in log) == ("spg" in name)
    saved = torch.load(tmp_path / "iter_2.pth", weights_only=False, map_location="cpu")
    assert not any(".diffusion." in key or ".semantic." in key for key in saved["state_dict"])
    held = sum(tensor.numel() * tensor.element_size() for tensor in saved["state_dict"].values())
    # With AdamW's two moments of what trains, and the log.
    assert 2.8 * held < (tmp_path / "iter_2.pth").stat().st_size < 3.2 * held + 1e6


def test_resumed_run_equals_the_whole_one(
    run_tool: Callable[..., str], miniature: Callable[[str], Path], tmp_path: Path
) -> None:
    name = "tiny_linear_openmoji_128"
    data = miniature(name)
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
    run_tool: Callable[..., str], miniature: Callable[[str], Path], tmp_path: Path
) -> None:
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    name, work = "tiny_fpn_openmoji_128", tmp_path / "work"
    data = miniature(name)
    run_tool(name, data, work)
    checkpoint, config = str(work / "iter_2.pth"), str(work / f"{name}.py")
    image = str(data / "images/val/val_0.png")

    shown = (checkpoint, "--show-dir", str(tmp_path / "shown"))
    every = {"default_hooks__visualization__interval": 1}
    log = run_tool(name, data, work, *shown, tool="test.py", **every)
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

    arguments = ["mm-export", config, checkpoint, str(tmp_path / "merged")]
    written = CliRunner().invoke(app, arguments)
    assert written.exit_code == 0, written.output
    merged = [str(tmp_path / "merged" / file) for file in ("config.py", "model.pth")]
    assert [line.split(" (")[0] for line in written.stdout.splitlines()[-2:]] == merged
    whole = init_model(*merged, device="cpu")
    torch.testing.assert_close(
        inference_model(whole, image).seg_logits.data,
        inference_model(model, image).seg_logits.data,
        atol=0,
        rtol=0,
    )


def test_config_of_ones_own_with_all_switches(
    run_tool: Callable[..., str], miniature: Callable[[str], Path], tmp_path: Path
) -> None:
    """Moving average, gradient accumulation, activation checkpointing, bf16 trunk, layer decay."""
    data = miniature("tiny_fpn_folder_128")
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
    name = str(own.with_suffix(""))
    run_tool(name, data, tmp_path / "work")
    saved = torch.load(tmp_path / "work/iter_2.pth", weights_only=False, map_location="cpu")
    averaged = {key.removeprefix("module.") for key in saved["ema_state_dict"]} - {"steps"}
    assert averaged == set(saved["state_dict"])
    log = run_tool(name, data, tmp_path / "work", "--resume", train_cfg__max_iters=4)
    assert "resumed epoch: 0, iter: 2" in log
