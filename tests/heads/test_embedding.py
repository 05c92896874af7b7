"""Heads on one feature map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchfusion_plugins.heads.embedding import ClassifierHead, EmbeddingHead


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


HEADS = [lambda: EmbeddingHead(6, 5, grid=3), lambda: ClassifierHead(6, 5).eval()]


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (3, 3), (13, 5), (40, 31)])
def test_any_size(make: Any, size: tuple[int, int]) -> None:
    output = make()(features(2, 6, *size))
    assert output.shape == (2, 5)
    assert output.isfinite().all()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_embeddings_have_length_one(scale: float) -> None:
    output = EmbeddingHead(6, 5)(features(3, 6, 9, 11) * scale)
    torch.testing.assert_close(output.norm(dim=1), torch.ones(3))


def test_embedding_by_hand_on_a_divisible_size() -> None:
    head = EmbeddingHead(2, 3, grid=2)
    maps = features(1, 2, 4, 6)
    cells = []
    for top in (0, 2):
        for left in (0, 3):
            mean = maps[0, :, top : top + 2, left : left + 3].mean((1, 2))
            cells.append((mean - mean.mean()) / (mean.var(unbiased=False) + 1e-5).sqrt())
    vector = head.projection.weight @ torch.cat(cells) + head.projection.bias
    torch.testing.assert_close(head(maps)[0], vector / vector.norm())


def test_embedding_sees_layout_and_a_grid_of_one_does_not() -> None:
    maps = features(1, 6, 8, 8)
    for grid, same in ((4, False), (1, True)):
        head = EmbeddingHead(6, 16, grid)
        assert torch.allclose(head(maps), head(maps.flip(3)), atol=1e-6) is same


def test_embedding_does_not_depend_on_the_batch() -> None:
    head, maps = EmbeddingHead(6, 5), features(4, 6, 8, 8)
    torch.testing.assert_close(head(maps)[1], head(maps[1:2])[0])


def test_classifier_equals_batch_norm_and_linear_layer() -> None:
    head, maps = ClassifierHead(6, 4), features(5, 6, 3, 7)
    pooled = maps.mean((2, 3))
    normal = (pooled - pooled.mean(0)) / (pooled.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(maps), F.linear(normal, head.linear.weight, head.linear.bias))
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]


def test_classifier_on_a_grid_sees_where_things_are() -> None:
    head, maps = ClassifierHead(6, 4, grid=2), features(5, 6, 4, 6)
    parts = [maps[:, :, i : i + 2, j : j + 3].mean((2, 3)) for i in (0, 2) for j in (0, 3)]
    pooled = torch.stack(parts, 2).flatten(1)
    normal = (pooled - pooled.mean(0)) / (pooled.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(maps), F.linear(normal, head.linear.weight, head.linear.bias))


def test_classifier_tells_features_with_a_large_common_mean_apart() -> None:
    head = ClassifierHead(6, 4)
    maps = features(32, 6, 3, 3)
    torch.testing.assert_close(head(maps + 100), head(maps), atol=1e-3, rtol=0)


@pytest.mark.parametrize("make", [lambda: EmbeddingHead(6, 5), lambda: ClassifierHead(6, 5)])
def test_float32_under_autocast_and_with_gradient(make: Any) -> None:
    head: nn.Module = make()
    maps = features(3, 6, 5, 7).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = head(maps)
        low = head(maps.bfloat16())
    assert output.dtype == low.dtype == torch.float32
    torch.testing.assert_close(output, head(maps))
    output[:, 0].sum().backward()
    assert maps.grad is not None
    for parameter in (maps, *head.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_gradients_are_right() -> None:
    maps = features(3, 4, 3, 5).double().requires_grad_()
    for head in (EmbeddingHead(4, 3, 2).double(), ClassifierHead(4, 3).double()):
        # Outputs are float32 by contract, so differences are taken coarsely.
        torch.autograd.gradcheck(head, maps, eps=1e-3, atol=1e-3, rtol=1e-2)


def test_half_precision_modules_give_float32() -> None:
    for head in (EmbeddingHead(6, 5).bfloat16(), ClassifierHead(6, 5).bfloat16()):
        assert head(features(2, 6, 4, 4)).dtype == torch.float32


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize("shape", [(6, 4, 4), (1, 5, 4, 4), (1, 6, 16)])
def test_wrong_maps(make: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[B, 6, h, w\]"):
        make()(torch.zeros(shape))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="at least 1, got 6, 0 and 4"):
        EmbeddingHead(6, 0)
    with pytest.raises(ValueError, match="at least 1, got 6, 0 and 1"):
        ClassifierHead(6, 0)
    with pytest.raises(ValueError, match="at least two images"):
        ClassifierHead(6, 5)(torch.zeros(1, 6, 4, 4))
