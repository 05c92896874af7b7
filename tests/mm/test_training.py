"""Optimisers, and data-parallel training in two processes."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("mmseg")

import torch
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmseg.registry import MODELS
from torch import nn

BASE_RATE = 0.01
PATIENCE = 600  # seconds, so that nothing hangs; a busy machine may need minutes


def optimiser_config(**changes: Any) -> dict[str, Any]:
    return {
        "constructor": "AdapterOptimWrapperConstructor",
        "optimizer": {"type": "AdamW", "lr": BASE_RATE, "weight_decay": 0.05},
        **changes,
    }


def held(wrapper: Any) -> set[int]:
    return {id(p) for group in wrapper.optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "paramwise_cfg": {
                "norm_decay_mult": 0.0,
                "custom_keys": {"decode_head": {"lr_mult": 10}},
            }
        },
        {"paramwise_cfg": {"layer_decay_rate": 0.5}},
        {"accumulative_counts": 4},
    ],
)
def test_optimiser_holds_what_trains(segmentor_config: Any, options: dict[str, Any]) -> None:
    model = MODELS.build(segmentor_config())
    wrapper = build_optim_wrapper(model, optimiser_config(**options))
    assert held(wrapper) == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(held(wrapper)) < len(list(model.parameters())) / 2


def test_optimiser_holds_nothing_that_a_rate_of_zero_keeps(segmentor_config: Any) -> None:
    model = MODELS.build(segmentor_config())
    fixed = {id(p) for p in model.backbone.parameters() if p.requires_grad}
    others = {id(p) for p in model.parameters() if p.requires_grad} - fixed
    keys = {"backbone": {"lr_mult": 0.0}, "decode_head": {"lr_mult": 1.0}}
    wrapper = build_optim_wrapper(model, optimiser_config(paramwise_cfg={"custom_keys": keys}))
    assert fixed and held(wrapper) == others
    assert {id(p) for p in model.parameters() if p.requires_grad} == others


def test_a_rate_of_zero_for_all_is_refused(segmentor_config: Any) -> None:
    # Every name has it inside.
    options = optimiser_config(paramwise_cfg={"custom_keys": {"": {"lr_mult": 0.0}}})
    with pytest.raises(ValueError, match="every parameter has a learning rate of 0"):
        build_optim_wrapper(MODELS.build(segmentor_config()), options)


def test_mmengines_own_constructor_works_too(segmentor_config: Any) -> None:
    model = MODELS.build(segmentor_config())
    options = {"paramwise_cfg": {"custom_keys": {"injector": {"lr_mult": 0.1}}}}
    config = optimiser_config(constructor="DefaultOptimWrapperConstructor", **options)
    wrapper = build_optim_wrapper(model, config)
    assert held(wrapper) == {id(p) for p in model.parameters() if p.requires_grad}


def test_rates_fall_with_distance_from_the_end(segmentor_config: Any) -> None:
    model = MODELS.build(segmentor_config())
    paramwise = {"layer_decay_rate": 0.5, "custom_keys": {"decode_head": {"lr_mult": 10}}}
    wrapper = build_optim_wrapper(model, optimiser_config(paramwise_cfg=paramwise))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {
        names[id(parameter)]: group["lr"]
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    }
    # The blocks that run: down0 to down3, mid, up0 to up2; mid takes no injection by default.
    after = {"down0": 7, "down1": 6, "down2": 5, "down3": 4, "up0": 2, "up1": 1, "up2": 0}
    for site, count in after.items():
        for kind in ("weight", "bias"):
            rate = rates.pop(f"backbone.encoder.injector.projections.{site}.{kind}")
            assert rate == pytest.approx(BASE_RATE * 0.5**count)
    assert {r for n, r in rates.items() if n.startswith("decode_head")} == {10 * BASE_RATE}
    assert {r for n, r in rates.items() if n.startswith("neck")} == {BASE_RATE}


def test_impossible_decay_is_refused(segmentor_config: Any) -> None:
    model = MODELS.build(segmentor_config())
    with pytest.raises(ValueError, match=r"layer_decay_rate must be in \(0, 1\], got 2"):
        build_optim_wrapper(model, optimiser_config(paramwise_cfg={"layer_decay_rate": 2}))


def test_optimiser_with_the_rate_that_is_its_own(segmentor_config: Any) -> None:
    model = MODELS.build(segmentor_config())
    wrapper = build_optim_wrapper(model, optimiser_config(optimizer={"type": "AdamW"}))
    assert held(wrapper) == {id(p) for p in model.parameters() if p.requires_grad}
    assert {group["lr"] for group in wrapper.optimizer.param_groups} == {1e-3}
    decayed = optimiser_config(optimizer={"type": "AdamW"}, paramwise_cfg={"layer_decay_rate": 0.5})
    with pytest.raises(ValueError, match=r"layer_decay_rate=0\.5 needs the optimiser's lr"):
        build_optim_wrapper(model, decayed)


@pytest.fixture
def step_tools() -> Any:
    """Functions of the script that trains in several processes."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("data_parallel_step.py"))))


def test_accumulated_gradients_equal_those_of_the_union(
    segmentor_config: Any, step_tools: Any
) -> None:
    states = []
    for parts in (1, 2):
        model = step_tools.build(segmentor_config())
        before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        options = {"optimizer": {"type": "SGD", "lr": 0.1}, "accumulative_counts": parts}
        wrapper = build_optim_wrapper(model, optimiser_config(**options))
        wrapper.initialize_count_status(model, 0, parts)
        for part in range(parts):
            unchanged = all(torch.equal(v, model.get_parameter(n)) for n, v in before.items())
            assert unchanged, "nothing moves before the last part"
            model.train_step(step_tools.batch(part * 4 // parts, 4 // parts), wrapper)
        states.append({name: model.get_parameter(name).detach() for name in before})
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-5, rtol=0, msg=name)
        assert not torch.equal(value, before[name]), name


def test_batch_norm_is_synchronised_outside_foundations_alone(segmentor_config: Any) -> None:
    config = segmentor_config()
    config["decode_head"]["norm_cfg"] = {"type": "BN"}
    model = MODELS.build(config)
    kinds = {name: type(module) for name, module in model.named_modules()}
    names = list(model.state_dict())
    converted = convert_sync_batchnorm(model, "torch")
    changed = {
        name for name, module in converted.named_modules() if type(module) is not kinds.get(name)
    }
    assert changed == {name for name, kind in kinds.items() if kind is nn.BatchNorm2d}
    assert changed
    assert all(name.startswith("decode_head.") for name in changed)
    assert all(isinstance(converted.get_submodule(n), nn.SyncBatchNorm) for n in changed)
    assert list(converted.state_dict()) == names
    # What mmengine does where one process trains.
    reverted = revert_sync_batchnorm(converted)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in reverted.modules())


def test_two_processes_equal_one(segmentor_config: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(segmentor_config()))
    script = str(Path(__file__).with_name("data_parallel_step.py"))
    runs = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(world_size), str(tmp_path)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, world_size in ((0, 1), (0, 2), (1, 2))
    ]
    try:
        for run in runs:
            _, errors = run.communicate(timeout=PATIENCE)
            assert run.returncode == 0, errors
    finally:
        # One of two that work together waits for the other, however long it is dead.
        for run in runs:
            run.kill()
            run.wait()
    alone = torch.load(tmp_path / "0of1.pt", weights_only=True)
    for rank in (0, 1):
        together = torch.load(tmp_path / f"{rank}of2.pt", weights_only=True)["after"]
        assert set(together) == set(alone["after"])
        for name, value in alone["after"].items():
            torch.testing.assert_close(together[name], value, atol=1e-5, rtol=0, msg=name)
            assert (value - alone["before"][name]).abs().max() > 1e-4, name


def test_two_processes_of_torchrun_train_on_cpus(
    miniature: Callable[[str], Path], shrink: Callable[[str, Path], dict[str, Any]], tmp_path: Path
) -> None:
    name = "tiny_linear_openmoji_128"
    options = [f"{key}={value}" for key, value in shrink(name, miniature(name)).items()]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "sketchfusion_plugins", "mm-train", name]
    command += ["--launcher", "pytorch", "--work-dir", str(tmp_path), "--cfg-options", *options]
    # Also on a machine with GPUs.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path
    )
    log = result.stdout + result.stderr
    assert result.returncode == 0, log
    assert "Distributed training: True" in log
    assert "GPU number: 2" in log
    assert log.count("mIoU: ") == 1
    assert "[2/2]" in log, "two processes share three drawings: two each"
    saved = torch.load(tmp_path / "iter_2.pth", weights_only=False)["state_dict"]
    assert not any(key.startswith("module.") for key in saved)
