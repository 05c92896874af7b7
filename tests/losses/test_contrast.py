"""Cross-domain losses against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("pytorch_metric_learning")

from sketchfusion_plugins.losses.contrast import CrossDomainInfoNCE, CrossDomainTriplet

LOSSES = [CrossDomainTriplet, CrossDomainInfoNCE]
LABELS = (torch.tensor([0, 0, 1, 2, 5]), torch.tensor([1, 0, 2, 0, 0, 7, 2]))


def batch(seed: int = 0, sketches: int = 5, photos: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        3 * torch.randn(sketches, 6, generator=generator),
        torch.randn(photos, 6, generator=generator),
    )


def test_info_nce_of_pairs_is_clips_loss() -> None:
    sketches, photos = batch(photos=5)
    logits = F.normalize(sketches, dim=1) @ F.normalize(photos, dim=1).T / 0.07
    target = torch.arange(5)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(CrossDomainInfoNCE()(sketches, photos, target), expected)


@pytest.mark.parametrize("alone", [0, 2])
def test_pairs_that_are_told_apart_count(alone: int) -> None:
    # All pairs but the last have a loss that float32 rounds to 0; some photos are of no sketch.
    sketches, photos = torch.eye(16), torch.eye(16)
    photos[15] = 0.9 * sketches[14] + 0.436 * sketches[15]
    logits = 100 * sketches @ F.normalize(photos, dim=1).T
    target = torch.arange(16)
    photo_labels = torch.where(target < alone, target + 99, target)
    told = target[alone:]
    expected = (F.cross_entropy(logits[alone:], told) + F.cross_entropy(logits.T[alone:], told)) / 2
    loss = CrossDomainInfoNCE(0.01)(sketches, photos, target, photo_labels)
    assert expected > 0.1
    torch.testing.assert_close(loss, expected)


def test_the_same_label_tensor_twice_keeps_the_pairs() -> None:
    # pytorch-metric-learning drops pairs of equal index when both label tensors are one object.
    sketches, photos = batch(photos=5)
    labels = torch.arange(5)
    for make in LOSSES:
        loss = make()
        alike = loss(sketches, photos, labels, labels)
        torch.testing.assert_close(alike, loss(sketches, photos, labels, labels.clone()))
        torch.testing.assert_close(alike, loss(sketches, photos, labels))
        assert alike > 0


def one_way(similarity: Tensor, same: Tensor) -> Tensor:
    """Supervised contrastive loss of rows that have a positive."""
    rows = []
    for values, positive in zip(similarity, same, strict=True):
        if positive.any():
            rows.append(-(values[positive] - values.exp().sum().log()).mean())
    return torch.stack(rows).mean()


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_info_nce_of_classes_by_its_formula(temperature: float) -> None:
    sketches, photos = batch()
    cosine = F.normalize(sketches, dim=1) @ F.normalize(photos, dim=1).T / temperature
    same = LABELS[0][:, None] == LABELS[1]
    expected = (one_way(cosine, same) + one_way(cosine.T, same.T)) / 2
    torch.testing.assert_close(CrossDomainInfoNCE(temperature)(sketches, photos, *LABELS), expected)


def triplets(similarity: Tensor, same: Tensor, margin: float) -> Tensor:
    costs = [
        margin + values[negative] - values[positive]
        for values, row in zip(similarity, same, strict=True)
        for positive in range(len(values))
        for negative in range(len(values))
        if row[positive] and not row[negative]
    ]
    costs = [cost for cost in costs if cost > 0]
    return torch.stack(costs).mean()


@pytest.mark.parametrize("margin", [0.1, 0.3])
def test_triplet_by_its_formula(margin: float) -> None:
    sketches, photos = batch()
    cosine = F.normalize(sketches, dim=1) @ F.normalize(photos, dim=1).T
    same = LABELS[0][:, None] == LABELS[1]
    expected = (triplets(cosine, same, margin) + triplets(cosine.T, same.T, margin)) / 2
    torch.testing.assert_close(CrossDomainTriplet(margin)(sketches, photos, *LABELS), expected)


@pytest.mark.parametrize("make", LOSSES)
def test_sketches_of_one_class_do_not_attract_each_other(make: Any) -> None:
    sketches, photos = batch()
    assert make()(sketches, photos, torch.full((5,), 9), LABELS[1]).item() == 0


@pytest.mark.parametrize("make", LOSSES)
def test_both_domains_and_the_temperature_get_gradient(make: Any) -> None:
    loss = make()
    sketches, photos = (values.requires_grad_() for values in batch())
    loss(sketches, photos, *LABELS).backward()
    for values in (sketches, photos, *loss.parameters()):
        assert values.grad is not None
        assert values.grad.abs().sum() > 0
    assert len(list(loss.parameters())) == (make is CrossDomainInfoNCE)


@pytest.mark.parametrize("make", LOSSES)
def test_gradient_agrees_with_finite_differences(make: Any) -> None:
    loss = make().double()
    sketches, photos = batch(3, 4, 5)
    labels = torch.tensor([0, 1, 0, 2]), torch.tensor([0, 1, 2, 2, 0])
    step = 1e-2 * torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    values = sketches.clone().requires_grad_()
    loss(values, photos, *labels).backward()
    assert values.grad is not None
    with torch.no_grad():
        change = loss(sketches + step, photos, *labels) - loss(sketches - step, photos, *labels)
    assert float(change) == pytest.approx(2 * float((values.grad * step).sum()), rel=2e-2)


def test_hard_pairs_keep_their_gradient_at_low_temperature() -> None:
    # The positive is opposite, the negative identical: a probability of exp(-200).
    sketches = torch.tensor([[1.0, 0.0], [-1.0, 0.01]], requires_grad=True)
    photos = torch.tensor([[-1.0, 0.02], [1.0, 0.03]])
    value = CrossDomainInfoNCE(0.01)(sketches, photos, torch.arange(2))
    assert value.item() == pytest.approx(200, rel=1e-2)
    value.backward()
    assert sketches.grad is not None
    assert sketches.grad.abs().sum() > 1


def test_temperature_starts_and_stays_where_it_should() -> None:
    loss = CrossDomainInfoNCE()
    assert loss.temperature == pytest.approx(0.07)
    with torch.no_grad():
        loss.log_scale.fill_(math.log(1000))
    sketches, photos = batch()
    loss(sketches, photos, *LABELS).backward()
    assert loss.temperature == pytest.approx(0.01)
    assert loss.log_scale.grad is not None
    assert loss.log_scale.grad != 0
    fixed = CrossDomainInfoNCE(0.2, learn_temperature=False)
    assert not fixed.log_scale.requires_grad
    assert CrossDomainInfoNCE(1.5).temperature == pytest.approx(1.5)


def test_temperature_is_saved() -> None:
    loss = CrossDomainInfoNCE(0.3)
    other = CrossDomainInfoNCE()
    other.load_state_dict(loss.state_dict())
    assert other.temperature == pytest.approx(0.3)
    assert set(loss.state_dict()) == {"log_scale"}


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("labels", [torch.zeros(5), torch.arange(5)])
def test_without_negatives_or_positives_the_loss_is_zero_and_backward_works(
    make: Any, labels: Tensor
) -> None:
    sketches, photos = batch(photos=5)
    sketches.requires_grad_()
    photo_labels = labels if (labels == 0).all() else labels + 100
    value = make()(sketches, photos, labels, photo_labels)
    assert float(value.detach()) == 0
    value.backward()
    assert sketches.grad is not None
    assert sketches.grad.abs().sum() == 0


@pytest.mark.parametrize("make", LOSSES)
def test_float32_under_autocast(make: Any) -> None:
    loss = make()
    sketches, photos = batch()
    expected = loss(sketches, photos, *LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(sketches, photos, *LABELS)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("make", LOSSES)
def test_training_draws_pairs_together(make: Any) -> None:
    torch.manual_seed(0)
    loss = make()
    sketches, photos = (values.requires_grad_() for values in batch(photos=5))
    optimiser = torch.optim.Adam([sketches, photos], lr=0.1)
    labels = torch.arange(5)
    for _ in range(60):
        optimiser.zero_grad()
        loss(sketches, photos, labels).backward()
        optimiser.step()
    with torch.no_grad():
        cosine = F.normalize(sketches, dim=1) @ F.normalize(photos, dim=1).T
    assert torch.equal(cosine.argmax(1), labels)
    assert torch.equal(cosine.argmax(0), labels)


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize(
    ("sketches", "photos", "labels", "message"),
    [
        ((5, 6), (7, 4), LABELS, r"\[5, 6\] and \[7, 4\]"),
        ((5, 6), (7, 6), (LABELS[0],), r"labels \[5\] of sketches and \[7\] of photos"),
        ((5, 6), (7, 6), (LABELS[0][:4], LABELS[1]), r"got \[4\] and \[7\]"),
        ((5, 6, 1), (7, 6), LABELS, r"\[S, D\]"),
    ],
)
def test_bad_batches(make: Any, sketches: Any, photos: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(torch.rand(sketches), torch.rand(photos), *labels)


def test_bad_options() -> None:
    for margin in (0.0, 2.5, math.nan):
        with pytest.raises(ValueError, match="margin"):
            CrossDomainTriplet(margin)
    for temperature in (0.0, 0.001, math.nan):
        with pytest.raises(ValueError, match="temperature of at least"):
            CrossDomainInfoNCE(temperature)
