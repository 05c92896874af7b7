"""Sketch-query segmentation, by hand and against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sketchfusion_plugins.heads.query import QuerySegmentationHead, ink_cells, pool_sketch


def random_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_logits_by_numpy() -> None:
    sketch, photo = random_map(2, 8, 5, 7), random_map(2, 8, 4, 9, seed=1)
    head = QuerySegmentationHead(scale=3.0, threshold=0.25)
    logits = head(sketch, photo, (4, 9)).detach().numpy()
    for image in range(2):
        query = sketch[image].numpy().mean((1, 2))
        for row in range(4):
            for column in range(9):
                cell = photo[image, :, row, column].numpy()
                cosine = query @ cell / np.linalg.norm(query) / np.linalg.norm(cell)
                expected = 3.0 * (cosine - 0.25)
                assert logits[image, row, column] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [(32, 72), (31, 65), (29, 67)])
def test_logits_reach_the_photos_size(size: tuple[int, int]) -> None:
    sketch, photo = random_map(2, 8, 5, 7), random_map(2, 8, 4, 9, seed=1)
    head = QuerySegmentationHead()
    whole = head(sketch, photo, (32, 72))
    assert head(sketch, photo, size).shape == (2, *size)
    # With a stride, the last cells reach beyond the photo and what is inside stays in place.
    strided = head(sketch, photo, size, photo_stride=8)
    assert torch.equal(strided, whole[:, : size[0], : size[1]])


def test_pixels_take_the_logits_of_their_cells() -> None:
    sketch = torch.ones(1, 1, 3, 3)
    photo = -torch.ones(1, 1, 4, 6)
    photo[..., 1:3, 2:5] = 1
    mask = QuerySegmentationHead()(sketch, photo, (28, 42)) > 0
    expected = torch.zeros(28, 42, dtype=torch.bool)
    expected[7:21, 14:35] = True
    # Corners of a rectangle are rounded by interpolation.
    assert (mask[0] != expected).sum() <= 4 * 9
    assert torch.equal(mask[0, 10:18], expected[10:18])
    assert torch.equal(mask[0, :, 18:31], expected[:, 18:31])


def test_pooling_over_ink_alone() -> None:
    features = random_map(2, 8, 3, 5)
    ink = torch.zeros(2, 3, 5, dtype=torch.bool)
    ink[0, 1, [0, 2]] = True
    pooled = pool_sketch(features, ink)
    expected = F.normalize((features[0, :, 1, 0] + features[0, :, 1, 2]) / 2, dim=0)
    torch.testing.assert_close(pooled[0], expected)
    # The second sketch is blank.
    torch.testing.assert_close(pooled[1], F.normalize(features[1].mean((1, 2)), dim=0))
    torch.testing.assert_close(pool_sketch(features, torch.ones_like(ink)), pool_sketch(features))


def test_head_pools_as_it_was_told() -> None:
    sketch, photo = random_map(1, 8, 3, 5), random_map(1, 8, 4, 4, seed=1)
    ink = torch.zeros(1, 3, 5, dtype=torch.bool)
    ink[0, 1, 2] = True
    only = sketch[:, :, 1:2, 2:3]
    plain, inked = QuerySegmentationHead(), QuerySegmentationHead(pooling="ink")
    torch.testing.assert_close(inked(sketch, photo, (9, 9), ink=ink), plain(only, photo, (9, 9)))
    torch.testing.assert_close(plain(sketch, photo, (9, 9), ink=ink), plain(sketch, photo, (9, 9)))
    with pytest.raises(ValueError, match=r"pooling='ink' needs ink"):
        inked(sketch, photo, (9, 9))


def test_ink_by_hand() -> None:
    sketch = torch.ones(2, 3, 20, 27)
    sketch[0, :, 17, 3] = -1  # Black, cell (2, 0).
    sketch[0, 2, 0, 26] = 0.5  # Pale yellow, cell (0, 3).
    sketch[0, :, 10, 10] = 0.9  # Not quite white paper.
    strided = ink_cells(sketch, (3, 4), stride=8)
    assert strided[0].nonzero().tolist() == [[0, 3], [2, 0]]
    assert not strided[1].any()
    # 27 columns of 4 cells: the third cell ends with column 20, not 23.
    sketch[1, :, 0, 21] = -1
    assert ink_cells(sketch, (3, 4), stride=8)[1].nonzero().tolist() == [[0, 2]]
    assert ink_cells(sketch, (3, 4))[1].nonzero().tolist() == [[0, 3]]
    assert torch.equal(ink_cells(sketch[:, :1], (20, 27))[1], sketch[1, 0] < 0)


def test_gradients_reach_maps_scale_and_threshold() -> None:
    sketch = random_map(1, 3, 2, 3).double().requires_grad_()
    photo = random_map(1, 3, 3, 2, seed=1).double().requires_grad_()
    head = QuerySegmentationHead(scale=2.0).double()
    assert torch.autograd.gradcheck(lambda *maps: head(*maps, (5, 7)), (sketch, photo))
    head(sketch, photo, (5, 7)).square().sum().backward()
    gradients = [head.log_scale.grad, head.threshold.grad, sketch.grad, photo.grad]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_training_finds_scale_and_threshold() -> None:
    sketch, photo = random_map(4, 8, 3, 5), random_map(4, 8, 6, 7, seed=1)
    query = pool_sketch(sketch)
    cosine = torch.einsum("bc,bchw->bhw", query, F.normalize(photo, dim=1))
    truth = (cosine > 0.2).float()
    head = QuerySegmentationHead()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        logits = head(sketch, photo, (6, 7))
        F.binary_cross_entropy_with_logits(logits, truth).backward()
        optimizer.step()
    assert head.threshold.item() == pytest.approx(0.2, abs=0.03)
    assert head.log_scale.exp().item() > 1 / 0.07


def test_autocast_computes_in_float32() -> None:
    sketch, photo = random_map(2, 64, 5, 7), random_map(2, 64, 4, 9, seed=1)
    head = QuerySegmentationHead()
    expected = head(sketch, photo, (31, 50))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(sketch, photo, (31, 50))
    assert torch.equal(logits, expected)
    assert head(sketch.bfloat16(), photo.bfloat16(), (31, 50)).dtype == torch.float32


def test_initial_values() -> None:
    head = QuerySegmentationHead()
    assert math.exp(head.log_scale.item()) == pytest.approx(1 / 0.07)
    assert head.threshold.item() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, r"pooling must be 'all' or 'ink', got 'max'"),
        ({"scale": 0.0}, r"scale must be above 0 and finite, got 0\.0"),
        ({"scale": math.inf}, r"scale must be above 0 and finite"),
        ({"threshold": 1.5}, r"threshold is a cosine, -1\.\.1, got 1\.5"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuerySegmentationHead(**options)


def test_wrong_shapes() -> None:
    head = QuerySegmentationHead()
    features = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"share batch size and channels"):
        head(features, torch.zeros(1, 2, 4, 4), (9, 9))
    with pytest.raises(ValueError, match=r"4 x 4 cells of 8 x 8 px do not cover.*33 x 32 px"):
        head(features, features, (33, 32), photo_stride=8)
    with pytest.raises(ValueError, match=r"ink as bool \[1, 4, 4\].*float32 \[1, 4, 4\]"):
        pool_sketch(features, torch.ones(1, 4, 4))
    with pytest.raises(ValueError, match=r"ink as bool \[1, 4, 4\].*\[1, 4, 5\]"):
        pool_sketch(features, torch.ones(1, 4, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"sketches \[B, 1 or 3, H, W\].*\[1, 4, 8, 8\]"):
        ink_cells(torch.ones(1, 4, 8, 8), (2, 2))
    with pytest.raises(ValueError, match=r"2 x 2 cells of 3 x 4 px do not cover"):
        ink_cells(torch.ones(1, 3, 8, 8), (2, 2), stride=(3, 4))
