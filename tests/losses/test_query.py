"""Query segmentation loss, against torch, segmentation_models_pytorch and loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sketchfusion_plugins.losses.query import QueryLossConfig, query_segmentation_loss


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 7, 10, generator=generator)
    masks = torch.randint(2, (3, 7, 10), generator=generator)
    masks[0, :3] = 255
    masks[2] = 0
    return logits.requires_grad_(), masks


def test_bce_is_torchs(batch: tuple[Tensor, Tensor]) -> None:
    logits, masks = batch
    expected = [
        F.binary_cross_entropy_with_logits(one[mask != 255], mask[mask != 255].float())
        for one, mask in zip(logits, masks, strict=True)
    ]
    losses = query_segmentation_loss(logits, masks)
    torch.testing.assert_close(losses["loss_bce"], torch.stack(expected).mean())


def test_dice_is_that_of_segmentation_models_pytorch(batch: tuple[Tensor, Tensor]) -> None:
    from segmentation_models_pytorch.losses import DiceLoss

    logits, masks = batch
    # That library's smoothing counts twice in numerator and denominator.
    oracle = DiceLoss("binary", smooth=0.5, ignore_index=255)
    expected = []
    for one, mask in zip(logits[:2], masks[:2], strict=True):
        expected.append(oracle(one[None, None], mask[None, None]))
    # It skips masks without foreground; by hand, with nothing to overlap:
    expected.append(1 - 1 / (logits[2].sigmoid().sum() + 1))
    losses = query_segmentation_loss(logits, masks)
    torch.testing.assert_close(losses["loss_dice"], torch.stack(expected).mean())


def test_dice_by_hand() -> None:
    # Probabilities 0.5; 3 of 4 pixels are foreground: overlap 1.5, sums 2 and 3.
    losses = query_segmentation_loss(torch.zeros(1, 2, 2), torch.tensor([[[1, 1], [1, 0]]]))
    assert losses["loss_dice"].item() == pytest.approx(1 - (2 * 1.5 + 1) / (2 + 3 + 1))
    assert losses["loss_bce"].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("foreground", [0, 1])
def test_right_and_certain_costs_nothing(foreground: int) -> None:
    masks = torch.full((1, 5, 7), foreground)
    losses = query_segmentation_loss(40.0 * (2 * masks - 1), masks)
    assert sum(losses.values()).item() == pytest.approx(0, abs=1e-6)


def test_an_empty_mask_teaches_to_predict_nothing() -> None:
    logits = torch.zeros(1, 5, 7, requires_grad=True)
    config = QueryLossConfig(bce=0.0)
    query_segmentation_loss(logits, torch.zeros(1, 5, 7), config)["loss_dice"].backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("garbage", [0.0, -1e30, math.inf, math.nan])
def test_ignored_pixels_have_no_influence(garbage: float, batch: tuple[Tensor, Tensor]) -> None:
    logits, masks = batch
    ignored = masks == 255
    changed = logits.detach().masked_fill(ignored, garbage).requires_grad_()
    losses = query_segmentation_loss(changed, masks)
    expected = query_segmentation_loss(logits, masks)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    sum(losses.values()).backward()
    assert changed.grad is not None
    assert (changed.grad[ignored] == 0).all()
    assert (changed.grad[~ignored] != 0).all()


def test_queries_without_a_label_are_left_out(batch: tuple[Tensor, Tensor]) -> None:
    logits, masks = batch
    masks[1] = 255
    losses = query_segmentation_loss(logits, masks)
    expected = query_segmentation_loss(logits[[0, 2]], masks[[0, 2]])
    assert losses == expected
    nothing = query_segmentation_loss(logits, torch.full_like(masks, 255))
    assert {name: value.item() for name, value in nothing.items()} == {
        "loss_bce": 0,
        "loss_dice": 0,
    }
    sum(nothing.values()).backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_weights(batch: tuple[Tensor, Tensor]) -> None:
    plain = query_segmentation_loss(*batch)
    assert list(plain) == ["loss_bce", "loss_dice"]
    weighted = query_segmentation_loss(*batch, QueryLossConfig(bce=0.5, dice=3.0))
    torch.testing.assert_close(weighted["loss_bce"], 0.5 * plain["loss_bce"])
    torch.testing.assert_close(weighted["loss_dice"], 3 * plain["loss_dice"])
    assert list(query_segmentation_loss(*batch, QueryLossConfig(dice=0.0))) == ["loss_bce"]


def test_other_ignored_labels(batch: tuple[Tensor, Tensor]) -> None:
    logits, masks = batch
    config = QueryLossConfig(ignore_index=-1)
    changed = query_segmentation_loss(logits, masks.where(masks != 255, -1), config)
    assert changed == query_segmentation_loss(logits, masks)


def test_half_precision_is_computed_in_float32(batch: tuple[Tensor, Tensor]) -> None:
    logits, masks = batch
    expected = query_segmentation_loss(logits.bfloat16().float(), masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = query_segmentation_loss(logits.bfloat16(), masks)
    assert losses == expected
    assert all(value.dtype == torch.float32 for value in losses.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bce": -1.0}, r"bce must be 0 or more and finite, got -1\.0"),
        ({"dice": math.nan}, r"dice must be 0 or more and finite, got nan"),
        ({"bce": 0.0, "dice": 0.0}, r"both 0"),
        ({"smooth": 0.0}, r"smooth must be above 0 px"),
        ({"ignore_index": 1}, r"must differ from 0 and 1, got 1"),
    ],
)
def test_config_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QueryLossConfig(**options)


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match=r"\[B, H, W\], got \[1, 1, 4, 5\] and \[1, 4, 5\]"):
        query_segmentation_loss(torch.zeros(1, 1, 4, 5), torch.zeros(1, 4, 5))
    with pytest.raises(ValueError, match=r"labels 0, 1 and 255, got 7"):
        query_segmentation_loss(torch.zeros(1, 4, 5), torch.full((1, 4, 5), 7))
