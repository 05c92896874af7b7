"""Losses on key points, against formulas in plain numpy and the released code's own formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sketchfusion_plugins.heads.cells import cell_centres
from sketchfusion_plugins.heads.matching import match_points
from sketchfusion_plugins.losses.correspondence import (
    CorrespondenceLoss,
    CorrespondenceLossConfig,
    end_point_error,
    matched_contrast,
)

STRIDES: dict[str, Any] = {"source_stride": (8, 6), "target_stride": (4, 12)}


def random_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pair() -> dict[str, Tensor]:
    """Maps of different, odd sizes and points at centres of the source's cells."""
    source = random_map(2, 16, 5, 7).requires_grad_()
    target = random_map(2, 16, 9, 4, seed=1).requires_grad_()
    generator = torch.Generator().manual_seed(2)
    cells = cell_centres(source, STRIDES["source_stride"])
    chosen = torch.stack([torch.randperm(35, generator=generator)[:6] for _ in range(2)])
    return {
        "source": source,
        "target": target,
        "source_points": cells[chosen],
        "target_points": torch.rand(2, 6, 2, generator=generator) * torch.tensor([48.0, 36.0]),
    }


def released_error(
    source: Tensor, target: Tensor, source_points: Tensor, target_points: Tensor
) -> Tensor:
    """Displacement in cells, expected minus true, as the released code has it, for one pair."""
    rows, columns = target.shape[1:]
    cell = (source_points / torch.tensor([6.0, 8.0])).long()
    descriptors = F.normalize(source, dim=0)[:, cell[:, 1], cell[:, 0]].T
    weights = (descriptors @ F.normalize(target, dim=0).flatten(1) / 0.02).softmax(1)
    weights = weights.reshape(-1, rows, columns)
    x = (weights.sum(1) * torch.arange(columns)).sum(1)
    y = (weights.sum(2) * torch.arange(rows)).sum(1)
    predicted = torch.stack([x, y], dim=1) - cell
    # Continuous positions, in units of cells whose centres are whole numbers.
    start = source_points / torch.tensor([6.0, 8.0]) - 0.5
    end = target_points / torch.tensor([12.0, 4.0]) - 0.5
    return (predicted - (end - start)).norm(dim=1).mean()


def test_end_point_error_is_the_released_codes(pair: dict[str, Tensor]) -> None:
    expected = torch.stack([released_error(*items) for items in zip(*pair.values(), strict=True)])
    error = end_point_error(**pair, **STRIDES)
    torch.testing.assert_close(error, expected.mean())


def test_end_point_error_by_hand() -> None:
    # One-hot descriptors: the match is the middle of the cell, exactly.
    features = torch.eye(6).reshape(1, 6, 2, 3)
    start = torch.tensor([[[4.0, 4.0], [20.0, 12.0]]])
    end = start + torch.tensor([[[3 * 8.0, 4 * 8.0], [0.0, 0.0]]])
    error = end_point_error(features, features, start, end, source_stride=8, target_stride=8)
    # 3 cells right and 4 down are 5 cells off; the other point is right.
    assert float(error) == pytest.approx((5 + 0) / 2, abs=1e-5)


@pytest.mark.parametrize("shown", [None, "cpu", "cuda"])
@pytest.mark.parametrize("ends", ["cpu", "cuda"])
@pytest.mark.parametrize("starts", ["cpu", "cuda"])
def test_points_of_another_device_than_the_maps(
    starts: str, ends: str, shown: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors without values, which refuse to be mixed as real ones do."""
    # They have no values to look at either, as while a model is compiled.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with FakeTensorMode():
        with torch.device("cuda"):
            loss = CorrespondenceLoss(CorrespondenceLossConfig(contrastive=1.0))
        source = torch.zeros(1, 8, 5, 7, device="cuda")
        target = torch.zeros(1, 8, 6, 3, device="cuda")
        visible = None if shown is None else torch.ones(1, 4, dtype=torch.bool, device=shown)
        losses = loss(
            source,
            target,
            torch.zeros(1, 4, 2, device=starts),
            torch.zeros(1, 4, 2, device=ends),
            source_stride=8,
            target_stride=8,
            visible=visible,
        )
        assert [value.device.type for value in losses.values()] == ["cuda", "cuda"]


def test_perfect_prediction_has_a_finite_gradient() -> None:
    features = torch.eye(6).reshape(1, 6, 2, 3).requires_grad_()
    points = torch.tensor([[[4.0, 4.0], [20.0, 12.0]]])
    end_point_error(
        features, features, points, points, source_stride=8, target_stride=8, radius=1
    ).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def contrast_by_loops(similarity: Tensor, negatives: Tensor, scale: float) -> float:
    """Symmetric cross entropy of one pair; ``negatives`` says which (i, j) compete."""
    size = len(similarity)
    total = 0.0
    for logits, allowed in ((similarity, negatives), (similarity.T, negatives.T)):
        for i in range(size):
            own = scale * float(logits[i, i])
            others = [scale * float(logits[i, j]) for j in range(size) if j != i and allowed[i, j]]
            total += math.log(sum(math.exp(value) for value in [own, *others])) - own
    return total / (2 * size)


def test_contrast_by_loops(pair: dict[str, Tensor]) -> None:
    pair["target_points"][0, 1] = pair["target_points"][0, 0]  # One target cell for two points.
    expected = []
    for source, target, start, end in zip(*pair.values(), strict=True):
        first = F.normalize(source, dim=0)[
            :, (start[:, 1] // 8).long(), (start[:, 0] // 6).long()
        ].T
        grid = (2 * end / torch.tensor([48.0, 36.0]) - 1)[None, None]
        second = F.grid_sample(
            F.normalize(target, dim=0)[None], grid, padding_mode="border", align_corners=False
        )[0, :, 0].T
        similarity = (first @ F.normalize(second, dim=1).T).detach()
        cells = [tuple((point // torch.tensor([12.0, 4.0])).tolist()) for point in end]
        compete = torch.tensor([[one != other for other in cells] for one in cells])
        expected.append(contrast_by_loops(similarity, compete, 5.0))
    assert expected[0] != expected[1]
    loss = matched_contrast(**pair, **STRIDES, scale=5.0)
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_contrast_is_clips_loss() -> None:
    source, target = random_map(1, 8, 3, 5), random_map(1, 8, 3, 5, seed=1)
    points = cell_centres(source, 8)[None]
    logits = 3.0 * F.normalize(source[0].flatten(1).T) @ F.normalize(target[0].flatten(1).T).T
    labels = torch.arange(15)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    loss = matched_contrast(
        source, target, points, points, source_stride=8, target_stride=8, scale=3.0
    )
    torch.testing.assert_close(loss, expected)


def test_points_in_one_source_cell_do_not_compete() -> None:
    source, target = random_map(1, 8, 3, 5), random_map(1, 8, 3, 5, seed=1)
    start = torch.tensor([[[3.0, 3.0], [5.0, 6.0]]])
    end = torch.tensor([[[3.0, 3.0], [30.0, 20.0]]])
    loss = matched_contrast(source, target, start, end, source_stride=8, target_stride=8)
    assert loss.item() == 0


def test_whole_pixels_are_points_as_others() -> None:
    source, target = random_map(1, 8, 3, 5), random_map(1, 8, 3, 5, seed=1)
    # Neighbouring cells of 7.5 px.
    points = torch.tensor([[[7, 3], [8, 3], [20, 10]]])
    stride: Any = {"source_stride": 7.5, "target_stride": 7.5}
    expected = matched_contrast(source, target, points.float(), points.float(), **stride)
    torch.testing.assert_close(matched_contrast(source, target, points, points, **stride), expected)


@pytest.mark.parametrize("loss", [end_point_error, matched_contrast])
def test_gradients_reach_both_maps(loss: Any, pair: dict[str, Tensor]) -> None:
    gradients = torch.autograd.grad(loss(**pair, **STRIDES), (pair["source"], pair["target"]))
    for gradient in gradients:
        assert (gradient.abs().sum((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("loss", [end_point_error, matched_contrast])
def test_gradients_are_exact(loss: Any) -> None:
    start = torch.tensor([[[4.0, 4.0], [11.0, 9.0], [20.0, 12.0]]]).double()
    end = torch.tensor([[[6.0, 3.0], [18.0, 9.0], [3.0, 11.0]]]).double()

    def run(source: Tensor, target: Tensor) -> Any:
        options = {"temperature": 0.5} if loss is end_point_error else {"scale": 2.0}
        return loss(source, target, start, end, source_stride=8, target_stride=6, **options)

    maps = [random_map(1, 3, *size).double().requires_grad_() for size in ((2, 3), (3, 4))]
    assert torch.autograd.gradcheck(run, maps)


@pytest.mark.parametrize("loss", [end_point_error, matched_contrast])
def test_invisible_points_have_no_influence(loss: Any, pair: dict[str, Tensor]) -> None:
    visible = torch.ones(2, 6, dtype=torch.bool)
    visible[0, [1, 4]] = False
    visible[1] = False
    maps = (pair["source"], pair["target"])
    outcomes = []
    for garbage in (0.0, 17.0, 1e30, float("nan")):
        points = {
            name: torch.where(visible[..., None], pair[name], garbage)
            for name in ("source_points", "target_points")
        }
        value = loss(*maps, **points, **STRIDES, visible=visible)
        outcomes.append((value.detach(), *torch.autograd.grad(value, maps)))
    seen = [0, 2, 3, 5]
    small = {
        name: values[:1] if name in ("source", "target") else values[:1, seen]
        for name, values in pair.items()
    }
    alone = loss(**small, **STRIDES)
    reference = (alone.detach(), *torch.autograd.grad(alone, maps))
    for outcome in outcomes:
        for one, other in zip(outcome, reference, strict=True):
            torch.testing.assert_close(one, other)
        assert (outcome[1][1] == 0).all()  # The second pair shows no point at all.


@pytest.mark.parametrize("loss", [end_point_error, matched_contrast])
@pytest.mark.parametrize("count", [0, 6])
def test_nothing_visible_costs_nothing(loss: Any, count: int, pair: dict[str, Tensor]) -> None:
    points = {name: pair[name][:, :count] for name in ("source_points", "target_points")}
    visible = torch.zeros(2, count, dtype=torch.bool)
    value = loss(pair["source"], pair["target"], **points, **STRIDES, visible=visible)
    assert value.item() == 0
    for gradient in torch.autograd.grad(value, (pair["source"], pair["target"])):
        assert (gradient == 0).all()


def test_noise_is_seeded_and_of_the_size_asked_for() -> None:
    features = torch.eye(6).reshape(1, 6, 2, 3)
    points = torch.full((1, 4000, 2), 4.0)

    def run(seed: int, noise: float = 3.0) -> float:
        generator = torch.Generator().manual_seed(seed)
        return float(
            end_point_error(
                features,
                features,
                points,
                points,
                source_stride=8,
                target_stride=8,
                noise=noise,
                generator=generator,
            )
        )

    assert run(0) == run(0) != run(1)
    # The mean length of a two-dimensional normal vector is sigma * sqrt(pi / 2).
    assert run(0) == pytest.approx(3 * math.sqrt(math.pi / 2), rel=0.03)
    assert run(0, 0.0) == pytest.approx(0, abs=1e-4)


def test_module_adds_noise_in_training_alone(pair: dict[str, Tensor]) -> None:
    loss = CorrespondenceLoss(CorrespondenceLossConfig(end_point=2.0, noise=1 / 3))

    def run() -> float:
        generator = torch.Generator().manual_seed(0)
        return loss(**pair, **STRIDES, generator=generator)["loss_end_point"].item()

    generator = torch.Generator().manual_seed(0)
    # A third of the longer side, 9 cells.
    noisy = 2 * end_point_error(**pair, **STRIDES, noise=3.0, generator=generator)
    assert run() == pytest.approx(noisy.item())
    loss.eval()
    assert run() == pytest.approx(2 * end_point_error(**pair, **STRIDES).item())


def test_default_is_the_released_recipe(pair: dict[str, Tensor]) -> None:
    loss = CorrespondenceLoss()
    assert not list(loss.parameters())
    assert list(loss(**pair, **STRIDES)) == ["loss_end_point"]
    # 3 of 60 cells.
    assert loss.config.noise * 60 == 3


def test_parent_recipe_learns_its_scale(pair: dict[str, Tensor]) -> None:
    loss = CorrespondenceLoss(CorrespondenceLossConfig(contrastive=0.5))
    assert loss.log_scale is not None
    assert math.exp(loss.log_scale.item()) == pytest.approx(1 / 0.07)
    losses = loss(**pair, **STRIDES)
    assert set(losses) == {"loss_end_point", "loss_contrastive"}
    expected = 0.5 * matched_contrast(**pair, **STRIDES)
    torch.testing.assert_close(losses["loss_contrastive"], expected)
    sum(losses.values()).backward()
    assert loss.log_scale.grad is not None
    assert loss.log_scale.grad != 0
    with torch.no_grad():
        loss.log_scale.fill_(9.0)
    loss(**pair, **STRIDES)["loss_contrastive"].backward()
    assert math.exp(loss.log_scale.item()) == pytest.approx(100)


def test_training_finds_the_match() -> None:
    maps = [random_map(2, 16, *size, seed=size[0]) for size in ((5, 7), (9, 4))]
    maps = [features.requires_grad_() for features in maps]
    start = cell_centres(maps[0], (8, 6))[None, [3, 17, 30]].expand(2, -1, -1)
    end = cell_centres(maps[1], (4, 12))[None, [30, 1, 14]].expand(2, -1, -1)
    # Random descriptors of 16 channels saturate the softmax at 0.02.
    config = CorrespondenceLossConfig(contrastive=1.0, noise=0.0, temperature=0.1)
    loss = CorrespondenceLoss(config)
    optimizer = torch.optim.Adam([*maps, *loss.parameters()], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        losses = loss(*maps, start, end, **STRIDES)
        sum(losses.values()).backward()
        optimizer.step()
    assert losses["loss_end_point"].item() < 0.1
    found = match_points(*maps, start, **STRIDES)
    # Within a tenth of a cell of 12 x 4 px.
    assert ((found - end) / torch.tensor([12.0, 4.0])).abs().max() < 0.1


def test_autocast_computes_in_float32(pair: dict[str, Tensor]) -> None:
    loss = CorrespondenceLoss(CorrespondenceLossConfig(contrastive=1.0)).eval()
    expected = loss(**pair, **STRIDES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = loss(**pair, **STRIDES)
    assert all(torch.equal(losses[name], expected[name]) for name in expected)
    half = {**pair, "source": pair["source"].bfloat16(), "target": pair["target"].bfloat16()}
    assert all(value.dtype == torch.float32 for value in loss(**half, **STRIDES).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end_point": -1.0}, r"end_point must be 0 or more and finite, got -1\.0"),
        ({"contrastive": math.inf}, r"contrastive must be 0 or more and finite"),
        ({"noise": math.nan}, r"noise must be 0 or more and finite, got nan"),
        ({"end_point": 0.0}, r"both 0"),
        ({"temperature": 0.0}, r"temperature must be above 0"),
        ({"radius": 0}, r"at least 1 cell.*got 0"),
    ],
)
def test_config_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorrespondenceLossConfig(**options)


@pytest.mark.parametrize("loss", [end_point_error, matched_contrast])
def test_every_point_needs_its_match(loss: Any, pair: dict[str, Tensor]) -> None:
    pair["target_points"] = pair["target_points"][:, :5]
    with pytest.raises(ValueError, match=r"\[2, 6, 2\] and \[2, 5, 2\]"):
        loss(**pair, **STRIDES)
