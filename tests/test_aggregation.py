"""Aggregation against numpy and values computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchfusion_plugins.aggregation import (
    AdaptiveAggregation,
    AdaptivePyramid,
    Bottleneck,
    cells,
)

Array = np.ndarray[Any, np.dtype[np.float64]]


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().numpy(), dtype=np.float64)


def _convolve(values: Array, weight: Array) -> Array:
    """Same-size convolution of ``[C, h, w]`` with ``[O, C, k, k]``, by its definition."""
    reach = weight.shape[-1] // 2
    padded = np.pad(values, ((0, 0), (reach, reach), (reach, reach)))
    height, width = values.shape[1:]
    result = np.zeros((weight.shape[0], height, width))
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            window = padded[:, row : row + height, column : column + width]
            result += np.einsum("oc,chw->ohw", weight[:, :, row, column], window)
    return result


def _group_norm(values: Array, groups: int, weight: Array, bias: Array) -> Array:
    grouped = values.reshape(groups, -1)
    centred = grouped - grouped.mean(1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    return scaled.reshape(values.shape) * weight[:, None, None] + bias[:, None, None]


def _bottleneck(state: dict[str, Array], values: Array, groups: int) -> Array:
    """The released code's branch, written down from its description."""

    def norm(name: str, hidden: Array) -> Array:
        return _group_norm(hidden, groups, state[f"{name}.weight"], state[f"{name}.bias"])

    hidden = np.maximum(norm("reduce_norm", _convolve(values, state["reduce.weight"])), 0)
    hidden = np.maximum(norm("mix_norm", _convolve(hidden, state["mix.weight"])), 0)
    hidden = norm("expand_norm", _convolve(hidden, state["expand.weight"]))
    shortcut = values
    if "shortcut.0.weight" in state:
        shortcut = norm("shortcut.1", _convolve(values, state["shortcut.0.weight"]))
    return np.maximum(hidden + shortcut, 0)


def _vary(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)


@pytest.mark.parametrize("in_channels", [6, 8])
def test_bottleneck_equals_numpy(in_channels: int) -> None:
    torch.manual_seed(0)
    bottleneck = Bottleneck(in_channels, 8, 4, norm_groups=2)
    _vary(bottleneck)
    level = torch.randn(2, in_channels, 5, 3)
    state = {name: _array(tensor) for name, tensor in bottleneck.state_dict().items()}
    assert ("shortcut.0.weight" in state) == (in_channels != 8)
    expected = np.stack([_bottleneck(state, _array(image), 2) for image in level])
    np.testing.assert_allclose(_array(bottleneck(level)), expected, atol=2e-5)


def test_bottleneck_has_no_convolution_bias_and_msra_init() -> None:
    torch.manual_seed(0)
    bottleneck = Bottleneck(256, 512, 128)
    convolutions = [module for module in bottleneck.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 4
    for convolution in convolutions:
        assert convolution.bias is None
        area = convolution.kernel_size[0] * convolution.kernel_size[1]
        expected = math.sqrt(2 / (convolution.out_channels * area))
        assert convolution.weight.std().item() == pytest.approx(expected, rel=0.02)


@torch.no_grad()
def test_weighted_sum_by_hand() -> None:
    """Branches that pass their level on leave the softmax-weighted sum alone to be seen."""
    aggregation = AdaptiveAggregation((4, 4), 4, bottleneck_channels=4, norm_groups=4)
    for bottleneck in aggregation.bottlenecks:
        assert isinstance(bottleneck, Bottleneck)
        bottleneck.expand_norm.weight.zero_()
    aggregation.branch_logits.copy_(torch.tensor([math.log(3.0), 0.0]))
    levels = [torch.full((1, 4, 2, 2), 8.0), torch.full((1, 4, 1, 1), 16.0)]
    got = aggregation(levels, (2, 2))
    # softmax(log 3, 0) = 3/4, 1/4; 3/4 * 8 + 1/4 * 16 = 10
    torch.testing.assert_close(got, torch.full((1, 4, 2, 2), 10.0))


@torch.no_grad()
def test_groups_of_one_value() -> None:
    """A level of one cell with a channel to each group: an image of 32 px in mmseg's configs."""
    torch.manual_seed(0)
    bottleneck = Bottleneck(6, 8, channels=4, norm_groups=4)
    _vary(bottleneck)
    state = {name: _array(tensor) for name, tensor in bottleneck.state_dict().items()}
    levels = torch.randn(2, 6, 1, 1)
    expected = np.stack([_bottleneck(state, _array(level), groups=4) for level in levels])
    np.testing.assert_allclose(_array(bottleneck(levels)), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bottleneck(levels[:1]), bottleneck(levels)[:1])


@torch.no_grad()
def test_levels_are_resized_before_their_bottlenecks() -> None:
    torch.manual_seed(0)
    aggregation = AdaptiveAggregation((6, 8), 8, bottleneck_channels=4, norm_groups=2)
    _vary(aggregation)
    levels = [torch.randn(1, 6, 6, 4), torch.randn(1, 8, 3, 2)]
    weights = np.exp(_array(aggregation.branch_logits))
    weights /= weights.sum()
    expected = np.zeros((8, 5, 4))
    for weight, bottleneck, level in zip(weights, aggregation.bottlenecks, levels, strict=True):
        state = {name: _array(tensor) for name, tensor in bottleneck.state_dict().items()}
        resized = F.interpolate(level, (5, 4), mode="bilinear", align_corners=False)
        expected += weight * _bottleneck(state, _array(resized[0]), 2)
    np.testing.assert_allclose(_array(aggregation(levels, (5, 4))[0]), expected, atol=2e-5)


def test_branch_weights_start_equal_and_sum_to_one() -> None:
    aggregation = AdaptiveAggregation((4, 4, 4), 8, norm_groups=2)
    assert aggregation.branch_weights.tolist() == pytest.approx([1 / 3] * 3)
    with torch.no_grad():
        aggregation.branch_logits.copy_(torch.tensor([0.0, math.log(2), math.log(5)]))
    assert aggregation.branch_weights.tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8])


@torch.no_grad()
def test_normalised_cells_have_unit_length() -> None:
    torch.manual_seed(0)
    plain = AdaptiveAggregation((4,), 8, norm_groups=2)
    unit = AdaptiveAggregation((4,), 8, norm_groups=2, normalize=True)
    unit.load_state_dict(plain.state_dict())
    level = [torch.randn(2, 4, 5, 5)]
    got, raw = unit(level, (5, 5)), plain(level, (5, 5))
    lengths = got.square().sum(1).sqrt()
    assert torch.allclose(lengths[raw.abs().sum(1) > 0], torch.ones(()))
    torch.testing.assert_close(got * raw.square().sum(1, keepdim=True).sqrt(), raw)


@torch.no_grad()
def test_cells_of_zeros_stay_zeros_in_every_precision() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        unit = AdaptiveAggregation((4,), 8, norm_groups=2, normalize=True).to(dtype)
        for bottleneck in unit.bottlenecks:
            for parameter in bottleneck.parameters():
                parameter.zero_()
        assert not unit([torch.ones(1, 4, 5, 5, dtype=dtype)], (5, 5)).any(), dtype


def test_parameter_count_of_the_released_code() -> None:
    with torch.device("meta"):
        aggregation = AdaptiveAggregation((640, 1280, 1280), 1280, 320)
    bottlenecks = sum(parameter.numel() for parameter in aggregation.bottlenecks.parameters())
    # By hand: convolutions 1x1, 3x3, 1x1 and the shortcut of 640 channels, and every GroupNorm.
    narrow = 640 * 320 + 320 * 320 * 9 + 320 * 1280 + 640 * 1280 + 2 * (320 + 320 + 1280 + 1280)
    wide = 1280 * 320 + 320 * 320 * 9 + 320 * 1280 + 2 * (320 + 320 + 1280)
    assert bottlenecks == narrow + 2 * wide == 5_850_880
    total = sum(parameter.numel() for parameter in aggregation.parameters())
    assert total - bottlenecks == 3  # the branch weights


def test_dropout_acts_on_channels_while_training_alone() -> None:
    torch.manual_seed(0)
    aggregation = AdaptiveAggregation((64,), 64, norm_groups=8, dropout=0.5)
    seen: list[Tensor] = []
    aggregation.bottlenecks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    level = [torch.ones(2, 64, 3, 3)]
    aggregation.train()(level, (3, 3))
    aggregation.eval()(level, (3, 3))
    dropped, kept = seen
    assert torch.equal(kept, level[0])
    # Whole channels are zero or scaled by 1 / (1 - 0.5).
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped, dropped[:, :, :1, :1].expand_as(dropped))
    assert 0.3 < (dropped == 0).float().mean() < 0.7


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (((1, 4, 2, 2),), "(4,)"),
        (((1, 4, 2, 2), (1, 6, 2, 2), (1, 6, 2, 2)), "(4, 6, 6)"),
        (((1, 6, 2, 2), (1, 4, 2, 2)), "(6, 4)"),
    ],
)
def test_wrong_levels(shapes: tuple[tuple[int, ...], ...], named: str) -> None:
    aggregation = AdaptiveAggregation((4, 6), 8, norm_groups=2)
    with pytest.raises(ValueError, match=r"\(4, 6\)") as error:
        aggregation([torch.zeros(shape) for shape in shapes], (2, 2))
    assert named in str(error.value)


def test_no_levels() -> None:
    with pytest.raises(ValueError, match="at least one level"):
        AdaptiveAggregation((), 8)


def test_gradients_have_the_strides_of_their_weights() -> None:
    # Else data parallelism copies each, and warns of it. Of small tensors torch asks oneDNN, whose
    # layouts these would be, on several threads alone; conftest's fixture takes this back.
    torch.set_num_threads(2)
    aggregation = AdaptiveAggregation((64, 96), 96, norm_groups=8)
    levels = [torch.randn(2, 64, 8, 8), torch.randn(2, 96, 4, 4)]
    aggregation(levels, (8, 8)).square().mean().backward()
    for name, weight in aggregation.named_parameters():
        assert weight.grad is not None and weight.grad.stride() == weight.stride(), name


@pytest.mark.parametrize("size", [(64, 64), (33, 57), (32, 200)])
def test_pyramid(size: tuple[int, int]) -> None:
    pyramid = AdaptivePyramid((4, 6), (16, 4, 32), out_channels=8, norm_groups=2)
    levels = [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)]
    maps = pyramid(levels, size)
    assert pyramid.strides == (16, 4, 32)
    assert [tuple(level.shape) for level in maps] == [
        (2, 8, math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for stride in (16, 4, 32)
    ]


@torch.no_grad()
def test_every_stride_has_its_own_weights() -> None:
    torch.manual_seed(0)
    pyramid = AdaptivePyramid((4,), (8, 16), out_channels=8, norm_groups=2)
    levels = [torch.randn(1, 4, 4, 4)]
    before = [level.clone() for level in pyramid(levels, (32, 32))]
    _vary(pyramid.maps[1])
    after = pyramid(levels, (32, 32))
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


@pytest.mark.parametrize("kind", ["aggregation", "pyramid"])
def test_reset(kind: str) -> None:
    torch.manual_seed(0)
    module: AdaptiveAggregation | AdaptivePyramid = (
        AdaptiveAggregation((4, 4), 8, norm_groups=2)
        if kind == "aggregation"
        else AdaptivePyramid((4, 4), (8, 16), out_channels=8, norm_groups=2)
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(9.0)
    module.reset_parameters()
    for name, parameter in module.named_parameters():
        if name.endswith("branch_logits") or "norm.bias" in name or "shortcut.1.bias" in name:
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        elif "norm.weight" in name or "shortcut.1.weight" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert not (parameter == 9).any(), name


def test_cells() -> None:
    assert cells((32, 33), 8) == (4, 5)
    assert cells((1, 336), 32) == (1, 11)


def test_hooks_see_what_norms_gave() -> None:
    torch.manual_seed(0)
    bottleneck = Bottleneck(32, 64, 16, norm_groups=8)
    kept: list[Tensor] = []
    for norm in (bottleneck.reduce_norm, bottleneck.mix_norm):
        norm.register_forward_hook(lambda _, __, output: kept.append(output))
        norm.register_full_backward_hook(lambda *_: None)
    bottleneck(torch.randn(2, 32, 6, 5)).square().mean().backward()
    assert len(kept) == 2
    # What a norm gives lies around 0; after the ReLU nothing would be below it.
    assert all((output < 0).any() for output in kept)
