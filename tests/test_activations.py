"""Activations told apart by what they compute, whatever library they are from."""

from __future__ import annotations

import timm.layers
import torch
from torch import nn
from transformers.activations import ACT2FN

from sketchfusion_plugins.fingerprint import ACTIVATION_POINTS, sample_activations


def _sample(*parts: nn.Module) -> list[float]:
    return sample_activations(nn.Sequential(nn.Linear(2, 2), nn.Identity(), *parts, nn.Dropout()))


def test_a_kind_is_the_same_in_every_library() -> None:
    gelu, quick = (
        [ACT2FN["gelu"], nn.GELU(), timm.layers.GELU()],
        [
            ACT2FN["quick_gelu"],
            timm.layers.QuickGELU(),
        ],
    )
    tanh = [ACT2FN["gelu_new"], ACT2FN["gelu_pytorch_tanh"], nn.GELU("tanh")]
    kinds = [{tuple(_sample(part)) for part in parts} for parts in (gelu, quick, tanh)]
    assert [len(kind) for kind in kinds] == [1, 1, 1]
    assert len(set.union(*kinds)) == 3


def test_order_number_and_weights_do_not_matter() -> None:
    expected = _sample(nn.GELU(), nn.ReLU())
    assert len(expected) == 2 * len(ACTIVATION_POINTS)
    assert _sample(nn.ReLU(inplace=True), nn.GELU(), nn.PReLU(), nn.GELU()) == expected
    assert _sample() == []
    attention = nn.MultiheadAttention(4, 2)
    assert _sample(attention) == []


def test_how_attention_is_written_does_not_matter() -> None:
    assert _sample(nn.GELU(), nn.Softmax(dim=-1), nn.Softmax2d()) == _sample(nn.GELU())


def test_neither_mode_precision_device_nor_compilation_matter() -> None:
    expected = _sample(nn.GELU())
    layers = nn.Sequential(nn.Linear(2, 2), nn.GELU())
    assert sample_activations(layers.train().to(torch.bfloat16)) == expected
    assert sample_activations(torch.compile(layers)) == expected
    layers[1].compile()
    assert sample_activations(layers) == expected
    with torch.device("meta"):
        assert sample_activations(layers) == expected
    with torch.autocast("cpu"):
        assert sample_activations(layers) == expected
