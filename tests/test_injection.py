"""Injection against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sketchfusion_plugins.injection import ClipInjector

# Output channels of Stable Diffusion 2.1's blocks, without the mid and the last up block.
RELEASED_SITES = {
    "down0": 320,
    "down1": 640,
    "down2": 1280,
    "down3": 1280,
    "up0": 1280,
    "up1": 1280,
    "up2": 640,
}


def _projection(injector: ClipInjector, name: str) -> nn.Conv2d:
    projection = injector.projections[name]
    assert isinstance(projection, nn.Conv2d)
    return projection


@torch.no_grad()
def test_integers_by_hand() -> None:
    """Two token channels on a 1 x 2 grid, one output channel on 2 x 4 cells."""
    injector = ClipInjector(2, {"up0": 1})
    projection = _projection(injector, "up0")
    projection.weight.copy_(torch.tensor([3.0, -1.0]).view(1, 2, 1, 1))
    projection.bias.fill_(10.0)
    tokens = torch.tensor([[[[1.0, 3.0]], [[3.0, 1.0]]]])
    hidden = torch.tensor([[[[0.0, 100, 200, 300], [400, 500, 600, 700]]]])
    # conv: 3*1 - 3 + 10 = 10 and 3*3 - 1 + 10 = 18. Bilinear without aligned corners places the
    # four cells at -0.25, 0.25, 0.75 and 1.25 of the two: 10, 12, 16, 18 (borders are held).
    expected = torch.tensor([[[[10.0, 112, 216, 318], [410, 512, 616, 718]]]])
    assert torch.equal(injector("up0", hidden, tokens), expected)


@torch.no_grad()
def test_equals_the_functional_form() -> None:
    torch.manual_seed(0)
    injector = ClipInjector(6, {"down0": 4}, init="official")
    projection = _projection(injector, "down0")
    tokens, hidden = torch.randn(3, 6, 5, 7), torch.randn(3, 4, 9, 6)
    weight, bias = projection.weight[:, :, 0, 0], projection.bias
    projected = torch.einsum("oc,bchw->bohw", weight, tokens) + bias[:, None, None]
    expected = hidden + F.interpolate(projected, (9, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(injector("down0", hidden, tokens), expected)


@pytest.mark.parametrize("size", [(4, 4), (1, 1), (9, 2)])
@torch.no_grad()
def test_zero_init_is_the_identity(size: tuple[int, int]) -> None:
    injector = ClipInjector(6, {"down0": 4})
    hidden = torch.randn(2, 4, *size)
    assert torch.equal(injector("down0", hidden, torch.randn(2, 6, 3, 5)), hidden)


@torch.no_grad()
def test_a_layer_may_stand_for_the_convolution() -> None:
    """As LoRA's do, which have its weight and are none."""

    class Doubled(nn.Module):
        def __init__(self, inside: nn.Conv2d) -> None:
            super().__init__()
            self.inside = inside

        @property
        def weight(self) -> torch.Tensor:
            return self.inside.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = 2 * self.inside(tokens)
            return result

    injector = ClipInjector(2, {"up0": 3}, "official")
    hidden, tokens = torch.zeros(1, 3, 4, 4), torch.rand(1, 2, 2, 2)
    expected = 2 * injector("up0", hidden, tokens)
    injector.projections["up0"] = Doubled(_projection(injector, "up0"))
    torch.testing.assert_close(injector("up0", hidden, tokens), expected)


@torch.no_grad()
def test_block_that_is_no_site() -> None:
    hidden = torch.randn(2, 4, 3, 3)
    assert ClipInjector(6, {"down0": 4})("mid", hidden, torch.randn(2, 6, 3, 3)) is hidden


@torch.no_grad()
def test_draws_are_innermost() -> None:
    injector = ClipInjector(1, {"mid": 1})
    _projection(injector, "mid").weight.fill_(1.0)
    tokens = torch.tensor([5.0, 7.0]).view(2, 1, 1, 1)
    got = injector("mid", torch.zeros(6, 1, 1, 1), tokens)
    assert got.flatten().tolist() == [5, 5, 5, 7, 7, 7]


@torch.no_grad()
def test_input_stays_as_it_was() -> None:
    injector = ClipInjector(2, {"mid": 3}, init="official")
    hidden = torch.randn(1, 3, 2, 2)
    before = hidden.clone()
    injector("mid", hidden, torch.randn(1, 2, 2, 2))
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("token_dtype", [torch.float32, torch.bfloat16])
def test_precision_of_the_hidden_state(hidden_dtype: torch.dtype, token_dtype: torch.dtype) -> None:
    injector = ClipInjector(2, {"mid": 3}, init="official")
    hidden = torch.randn(1, 3, 4, 4, dtype=hidden_dtype)
    got = injector("mid", hidden, torch.randn(1, 2, 2, 2, dtype=token_dtype))
    assert got.dtype == hidden_dtype


def test_parameter_count_of_the_released_code() -> None:
    with torch.device("meta"):
        injector = ClipInjector(1024, RELEASED_SITES)
    assert sum(parameter.numel() for parameter in injector.parameters()) == 6_888_000


def test_official_init_is_the_default_of_a_convolution() -> None:
    torch.manual_seed(0)
    projection = _projection(ClipInjector(256, {"mid": 512}, init="official"), "mid")
    # torch's default: uniform within 1 / sqrt(fan_in), weights and bias alike.
    bound = 1 / math.sqrt(256)
    for values in (projection.weight, projection.bias):
        assert values.abs().max() <= bound
        assert values.abs().max() > 0.98 * bound
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert values.mean().item() == pytest.approx(0, abs=0.1 * bound)
    reference = nn.Conv2d(256, 512, 1)
    assert projection.weight.std().item() == pytest.approx(reference.weight.std().item(), rel=0.02)


@pytest.mark.parametrize("init", ["zero", "official"])
def test_reset(init: str) -> None:
    injector = ClipInjector(4, {"mid": 4}, init=init)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in injector.parameters():
            parameter.fill_(9.0)
    injector.reset_parameters()
    zero = all(bool((parameter == 0).all()) for parameter in injector.parameters())
    assert zero == (init == "zero")
    assert all(bool((parameter.abs() <= 0.5).all()) for parameter in injector.parameters())
