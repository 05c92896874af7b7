"""Cells and pixels: where centres lie, and descriptors between them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from torch._subclasses.fake_tensor import FakeTensorMode

from sketchfusion_plugins.heads.cells import (
    cell_centres,
    check_maps,
    grid_descriptors,
    pool_to_grid,
    sample_descriptors,
    stride_pair,
    visible_points,
)


def random_map(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_pooling_by_hand() -> None:
    pooled = pool_to_grid(torch.arange(12.0).reshape(1, 1, 3, 4), 2)
    # Rows 0 to 1 and 1 to 2, columns 0 to 1 and 2 to 3.
    assert pooled.tolist() == [[[[2.5, 4.5], [6.5, 8.5]]]]
    # 42 cells at 336 px, in float64 by numpy: parts reach from floor(i * 42 / 4) to their ceiling.
    features = random_map(2, 3, 42, 42)
    edges = [(i * 42 // 4, -(-(i + 1) * 42 // 4)) for i in range(4)]
    expected = [
        [features[:, :, top:bottom, left:right].double().mean((2, 3)) for left, right in edges]
        for top, bottom in edges
    ]
    got = pool_to_grid(features, 4).double()
    want = torch.stack([torch.stack(row, -1) for row in expected], -2)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_centres_by_hand() -> None:
    centres = cell_centres(torch.zeros(1, 4, 2, 3), (10, 8))
    assert centres.tolist() == [[4, 5], [12, 5], [20, 5], [4, 15], [12, 15], [20, 15]]


@pytest.mark.parametrize("stride", [8, 7.5, (8, 4)])
def test_sampling_at_centres_gives_cells(stride: float | tuple[float, float]) -> None:
    features = random_map(2, 6, 5, 7)
    points = cell_centres(features, stride).expand(2, -1, -1)
    sampled = sample_descriptors(features, points, stride)
    torch.testing.assert_close(sampled, grid_descriptors(features))
    torch.testing.assert_close(sampled.norm(dim=2), torch.ones(2, 35))


def test_sampling_agrees_with_scipy() -> None:
    features = random_map(1, 4, 5, 7)
    points = torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [7 * 8.0 + 20, 5 * 6.0 + 20]
    )
    points -= 10  # Some lie outside.
    cells = F.normalize(features, dim=1)[0].numpy()
    rows, columns = points[0, :, 1].numpy() / 6 - 0.5, points[0, :, 0].numpy() / 8 - 0.5
    expected = np.stack(
        [map_coordinates(cell, [rows, columns], order=1, mode="nearest") for cell in cells], axis=1
    )
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    sampled = sample_descriptors(features, points, (6, 8))
    np.testing.assert_allclose(sampled[0].numpy(), expected, atol=1e-5)


def test_invisible_points_may_hold_anything() -> None:
    features = random_map(1, 4, 5, 7).requires_grad_()
    points = torch.tensor([[[20.0, 12.0], [float("nan"), float("inf")]]])
    visible = torch.tensor([[True, False]])
    sampled = sample_descriptors(features, points, 8, visible)
    torch.testing.assert_close(sampled[:, :1], sample_descriptors(features, points[:, :1], 8))
    sampled.sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("shown", ["cpu", "cuda"])
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_visible_is_taken_where_the_points_are(
    place: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors without values, which refuse to be mixed as real ones do."""
    # They have no values to look at either, as while a model is compiled.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with FakeTensorMode():
        points = torch.zeros(1, 4, 2, device=place)
        visible = torch.ones(1, 4, dtype=torch.bool, device=shown)
        assert visible_points(points, visible).device == points.device
        features = torch.zeros(1, 8, 5, 7, device="cuda")
        sampled = sample_descriptors(features, points, 8, visible)
        assert sampled.shape == (1, 4, 8) and sampled.device == features.device


def test_half_precision_is_computed_in_float32() -> None:
    features = random_map(1, 4, 5, 7)
    points = torch.tensor([[[20.3, 12.1]]])
    sampled = sample_descriptors(features.bfloat16(), points, 8)
    assert sampled.dtype == torch.float32
    expected = sample_descriptors(features.bfloat16().float(), points, 8)
    assert torch.equal(sampled, expected)
    assert sample_descriptors(features.double(), points, 8).dtype == torch.float64


@pytest.mark.parametrize("stride", [0, -1, float("inf"), (8, 0), (8, 8, 8), float("nan")])
def test_strides_are_positive(stride: float) -> None:
    with pytest.raises(ValueError, match=r"pixels per cell, one number above 0.*got"):
        stride_pair(stride)


@pytest.mark.parametrize(
    ("points", "visible", "message"),
    [
        (torch.zeros(2, 3), None, r"points \[B, N, 2\].*\[2, 3\]"),
        (torch.zeros(1, 3, 3), None, r"points \[B, N, 2\].*\[1, 3, 3\]"),
        (torch.zeros(1, 3, 2), torch.ones(1, 2, dtype=torch.bool), r"bool \[1, 3\].*\[1, 2\]"),
        (torch.zeros(1, 3, 2), torch.ones(1, 3), r"bool \[1, 3\].*float32"),
        (torch.full((1, 3, 2), float("nan")), None, r"3 visible point\(s\) are NaN"),
    ],
)
def test_wrong_points(points: torch.Tensor, visible: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        visible_points(points, visible)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (torch.zeros(3, 4, 4), torch.zeros(1, 3, 4, 4), r"\[B, C, h, w\].*\[3, 4, 4\]"),
        (torch.zeros(1, 3, 0, 4), torch.zeros(1, 3, 4, 4), r"\[B, C, h, w\].*\[1, 3, 0, 4\]"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int), torch.zeros(1, 3, 4, 4), r"int32"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4), r"share batch size"),
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4), r"\[1, 2, 4, 4\] and \[1, 3, 4, 4\]"),
    ],
)
def test_wrong_maps(source: torch.Tensor, target: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_maps(source, target)


def test_points_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"points of 2 images.*got 1"):
        sample_descriptors(torch.zeros(2, 3, 4, 4), torch.zeros(1, 5, 2), 8)
