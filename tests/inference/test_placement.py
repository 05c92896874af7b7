"""Padding to a square and back, against Pillow and hand calculation."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from sketchfusion_plugins.images import to_tensor
from sketchfusion_plugins.inference.placement import Placement

SIZES = [(100, 60), (60, 100), (64, 64), (97, 31), (31, 97), (3, 2), (640, 479), (33, 32)]


@pytest.mark.parametrize("side", [64, 77, 128])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_box_is_where_pillow_puts_the_image(width: int, height: int, side: int) -> None:
    image = to_tensor(Image.new("RGB", (width, height), "black"), side)
    expected = torch.ones(side, side)
    placement = Placement(width, height, side)
    (x, y), (w, h) = placement.corner, placement.filled
    expected[y : y + h, x : x + w] = -1
    torch.testing.assert_close(image[0], expected)
    assert placement.crop(image).shape == (3, h, w)
    assert bool((placement.crop(image) == -1).all())


def test_points_by_hand() -> None:
    # 100 x 60 in 128: 128 x 77 px (76.8 rounded), 26 px below the top (25.5 rounded to even).
    placement = Placement(100, 60, 128)
    assert (placement.filled, placement.corner) == ((128, 77), (0, 26))
    points = torch.tensor([[0.0, 0.0], [50.0, 30.0], [100.0, 60.0], [25.0, 6.0]])
    expected = torch.tensor([[0.0, 26.0], [64.0, 64.5], [128.0, 103.0], [32.0, 33.7]])
    torch.testing.assert_close(placement.to_square(points), expected)
    torch.testing.assert_close(placement.to_image(expected), points)


def test_portrait_by_hand() -> None:
    placement = Placement(16, 32, 64)
    torch.testing.assert_close(
        placement.to_square(torch.tensor([[[0.5, 0.5]]])), torch.tensor([[[17.0, 1.0]]])
    )
    # The padding belongs to the nearest edge.
    outside = torch.tensor([[3.0, 10.0], [63.0, 64.0], [32.0, -1.0]])
    expected = torch.tensor([[0.0, 5.0], [16.0, 32.0], [8.0, 0.0]])
    torch.testing.assert_close(placement.to_image(outside), expected)
    assert placement.inside(outside).tolist() == [False, False, False]
    assert placement.inside(torch.tensor([[16.0, 0.0], [48.0, 64.0]])).all()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_round_trip(width: int, height: int) -> None:
    placement = Placement(width, height, 96)
    points = torch.rand(50, 2, dtype=torch.float64) * torch.tensor([width, height])
    torch.testing.assert_close(placement.to_image(placement.to_square(points)), points)


def test_enlarged_values_keep_their_place() -> None:
    placement = Placement(64, 32, 32)
    values = torch.full((32, 32), -9.0)
    # The box is rows 8 to 23; its upper left quarter is foreground.
    values[8:24] = 0.0
    values[8:16, :16] = 1.0
    enlarged = placement.enlarge(values)
    assert enlarged.shape == (32, 64)
    expected = torch.zeros(32, 64, dtype=torch.bool)
    expected[:16, :32] = True
    assert torch.equal(enlarged > 0.5, expected)
    assert enlarged.min() == 0.0  # nothing of the padding


@pytest.mark.parametrize("values", [(0, 5, 64), (5, -1, 64), (5, 5, 0), (1000, 1, 64)])
def test_impossible_placements(values: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="px"):
        Placement(*values)
