"""Necks: aggregation of our levels and of other backbones'."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("mmseg")

import torch
from mmseg.registry import MODELS
from torch import Tensor

from sketchfusion_plugins.aggregation import AdaptiveAggregation, AdaptivePyramid
from sketchfusion_plugins.mm import AdaptiveAggregationNeck, AdaptivePyramidNeck


def levels(*channels: int, size: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, count, size >> index, size >> index, generator=generator)
        for index, count in enumerate(channels)
    ]


@pytest.mark.parametrize("bands", [None, 4])
def test_aggregation_is_the_cores(bands: int | None) -> None:
    torch.manual_seed(0)
    neck = AdaptiveAggregationNeck([8, 12], 16, norm_groups=4, frequency_bands=bands)
    core = AdaptiveAggregation([8, 12], 16, None, 4)
    core.load_state_dict(neck.aggregation.state_dict())
    (result,) = neck(levels(8, 12))
    torch.testing.assert_close(result, core(levels(8, 12), (16, 16)), atol=0, rtol=0)


def test_pyramid_is_the_cores() -> None:
    torch.manual_seed(0)
    neck = AdaptivePyramidNeck([8, 12, 12], 16, norm_groups=4)
    core = AdaptivePyramid([8, 12, 12], out_channels=16, norm_groups=4)
    core.load_state_dict(neck.pyramid.state_dict())
    results = neck(levels(8, 12, 12))
    assert [tuple(result.shape) for result in results] == [
        (2, 16, side, side) for side in (32, 16, 8, 4)
    ]
    for result, expected in zip(results, core(levels(8, 12, 12), (128, 128)), strict=True):
        torch.testing.assert_close(result, expected, atol=0, rtol=0)


def test_calibration_removes_a_band() -> None:
    neck = AdaptiveAggregationNeck([4], 8, norm_groups=2, frequency_bands=2)
    with torch.no_grad():
        neck.calibration[0].offsets[:, 1] = -1.0
    x = torch.arange(16.0)
    slow = torch.cos(2 * math.pi * x / 16).expand(1, 4, 16, 16)
    fast = torch.cos(2 * math.pi * 6 * x / 16).expand(1, 4, 16, 16)
    torch.testing.assert_close(neck([slow + fast])[0], neck([slow])[0])


@pytest.mark.parametrize("kind", ["AdaptiveAggregationNeck", "AdaptivePyramidNeck"])
def test_on_a_timm_resnet_in_mmseg(kind: str) -> None:
    backbone = MODELS.build(
        {"type": "mmseg.TIMMBackbone", "model_name": "resnet18", "pretrained": False}
    )
    neck = MODELS.build(
        {"type": kind, "in_channels": [64, 64, 128, 256, 512], "in_stride": 2, "out_channels": 64,
         "norm_groups": 16, "frequency_bands": 3}
    )  # fmt: skip
    results = neck(backbone(torch.zeros(1, 3, 64, 96)))
    strides = [8] if kind == "AdaptiveAggregationNeck" else [4, 8, 16, 32]
    expected = [(1, 64, 64 // stride, 96 // stride) for stride in strides]
    assert [tuple(result.shape) for result in results] == expected
    sum(result.mean() for result in results).backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


def test_the_timm_model_is_a_backbone_too() -> None:
    backbone = MODELS.build(
        {"type": "mmseg.TIMMBackbone", "model_name": "sketchfusion_tiny", "pretrained": False}
    )
    assert [level.shape[-1] for level in backbone(torch.zeros(1, 3, 96, 96))] == [24, 12, 6, 3]


@pytest.mark.parametrize("neck", [AdaptiveAggregationNeck, AdaptivePyramidNeck])
def test_refusals(neck: Any) -> None:
    built = neck([8, 12], 16, norm_groups=4)
    with pytest.raises(ValueError, match=r"expects 2 level\(s\) with \(8, 12\).*got 3 with"):
        built(levels(8, 12, 12))
    with pytest.raises(ValueError, match=r"got 2 with \(8, 8\). Set in_channels=\[8, 8\]"):
        built(levels(8, 8))
    with pytest.raises(ValueError, match="in_channels must list the channels"):
        neck([], 16)
    with pytest.raises(ValueError, match="in_channels must list the channels"):
        neck(64, 16)
    with pytest.raises(ValueError, match="out_channels=30 must be a positive multiple"):
        neck([8], 30)
