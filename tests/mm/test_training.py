"""Optimisers, and data-parallel training in two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmseg")

import torch
from mmengine.optim import build_optim_wrapper
from mmseg.registry import MODELS

BASE_RATE = 0.01


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


def test_two_processes_equal_one(segmentor_config: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(segmentor_config()))
    script = str(Path(__file__).with_name("data_parallel_step.py"))
    runs = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(world_size), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, world_size in ((0, 1), (0, 2), (1, 2))
    ]
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    alone = torch.load(tmp_path / "0of1.pt", weights_only=True)
    for rank in (0, 1):
        together = torch.load(tmp_path / f"{rank}of2.pt", weights_only=True)["after"]
        assert set(together) == set(alone["after"])
        for name, value in alone["after"].items():
            torch.testing.assert_close(together[name], value, atol=1e-5, rtol=0, msg=name)
            assert (value - alone["before"][name]).abs().max() > 1e-4, name
