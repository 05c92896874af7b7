"""Warps: image, points and mask move together, by hand-calculated and by drawn oracles."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sketchfusion_plugins.data.warps import STEEPEST, Warp, WarpConfig, inside, random_warp

STILL = WarpConfig(rotation=0, scale=1, shift=0, bend=0)
STRONG = WarpConfig(rotation=180, scale=1.5, shift=0.2, bend=0.08, cycles=1.15)
SIZES = [(64, 64), (48, 90), (97, 61)]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def simple(matrix: list[list[float]], shift: tuple[float, float] = (0, 0)) -> Warp:
    still = random_warp(generator(0), STILL)
    return replace(
        still,
        matrix=torch.tensor(matrix, dtype=torch.float64),
        shift=torch.tensor(shift, dtype=torch.float64),
    )


def dot(xy: Tensor, height: int, width: int, radius: float = 3.0) -> Tensor:
    """White picture with a soft black dot."""
    rows, columns = torch.meshgrid(
        torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij"
    )
    distance = ((columns - xy[0]) ** 2 + (rows - xy[1]) ** 2).sqrt()
    ink = (radius + 0.5 - distance).clamp(0, 1)
    return (1 - 2 * ink).expand(3, -1, -1)


def centroid(ink: Tensor) -> Tensor:
    height, width = ink.shape
    total = ink.sum()
    x = (ink.sum(0) * (torch.arange(width) + 0.5)).sum() / total
    y = (ink.sum(1) * (torch.arange(height) + 0.5)).sum() / total
    return torch.stack([x, y])


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_warp_of_nothing_changes_nothing(height: int, width: int) -> None:
    warp = random_warp(generator(1), STILL)
    image = torch.rand(3, height, width)
    torch.testing.assert_close(warp.image(image), image, atol=1e-4, rtol=0)
    mask = torch.randint(0, 9, (height, width))
    assert torch.equal(warp.mask(mask), mask)
    xy = torch.tensor([[0.5, 0.5], [10.25, 7.0]])
    moved, visible = warp.points(xy, height, width)
    torch.testing.assert_close(moved, xy)
    assert visible.all()


def test_shift_turn_and_scale_by_hand() -> None:
    # Longer side 80, centre (40, 20); a quarter of 80 to the right, a tenth down.
    moved, _ = simple([[1, 0], [0, 1]], (0.25, 0.1)).points(torch.tensor([[40.0, 20]]), 40, 80)
    torch.testing.assert_close(moved, torch.tensor([[60.0, 28]]))
    # The target's x axis looks up the source's negative y: what was above comes to the right.
    turned, _ = simple([[0, 1], [-1, 0]]).points(torch.tensor([[40.0, 10]]), 40, 80)
    torch.testing.assert_close(turned, torch.tensor([[50.0, 20]]))
    halved, _ = simple([[2, 0], [0, 2]]).points(torch.tensor([[50.0, 14]]), 40, 80)
    torch.testing.assert_close(halved, torch.tensor([[45.0, 17]]))


def test_whole_pixel_shift_and_quarter_turn_are_exact() -> None:
    image = torch.rand(2, 32, 32)
    shifted = simple([[1, 0], [0, 1]], (4 / 32, -3 / 32)).image(image, fill=0.25)
    torch.testing.assert_close(shifted[:, :-3, 4:], image[:, 3:, :-4], atol=1e-5, rtol=0)
    assert (shifted[:, -3:] == 0.25).all() and (shifted[:, :, :4] == 0.25).all()
    turned = simple([[0, 1], [-1, 0]]).image(image)
    torch.testing.assert_close(turned, torch.rot90(image, -1, (-2, -1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [WarpConfig(), STRONG], ids=["default", "strong"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_dot_lands_where_its_point_lands(height: int, width: int, config: WarpConfig) -> None:
    checked = 0
    for seed in range(20):
        warp = random_warp(generator(seed), config)
        share = 0.15 + 0.7 * torch.rand(2, generator=generator(1000 + seed))
        xy = share * torch.tensor([width, height])
        moved, visible = warp.points(xy, height, width)
        # A dot cut off by the border has its centroid elsewhere.
        if not inside(moved[None] - 8, height - 16, width - 16)[0]:
            continue
        checked += 1
        assert visible
        image = dot(xy, height, width)
        ink = (1 - warp.image(image)[0]) / 2
        assert (centroid(ink) - moved).norm() < 0.5
        covered = warp.mask(image[0] < 0)
        assert covered.dtype == torch.bool
        assert (centroid(covered.float()) - moved).norm() < 1
    assert checked > 5


def test_whole_numbers_are_points_too() -> None:
    warp = random_warp(generator(1))
    moved, _ = warp.points(torch.tensor([[40, 40]]), 96, 96)
    assert torch.equal(moved, warp.points(torch.tensor([[40.0, 40.0]]), 96, 96)[0])
    assert not torch.equal(moved, moved.round())


@pytest.mark.parametrize("seed", range(5))
def test_points_are_inverted_exactly_by_the_steepest_allowed_bend(seed: int) -> None:
    config = WarpConfig(rotation=90, scale=1.5, shift=0.3, bend=0.9 / (3 * math.pi), cycles=1)
    assert config.slope == pytest.approx(STEEPEST)
    warp = random_warp(generator(seed), config)
    xy = torch.rand(50, 2, dtype=torch.float64, generator=generator(seed)) * 200
    moved, _ = warp.points(xy, 200, 200)
    target = moved / 200 - 0.5
    waves = np.sin(target.numpy() @ warp.directions.numpy().T + warp.phases.numpy())
    source = (target - warp.shift).numpy() @ warp.matrix.numpy().T + waves @ warp.amplitudes.numpy()
    assert np.abs((source + 0.5) * 200 - xy.numpy()).max() < 1e-4


def test_what_leaves_the_picture_or_was_never_in_it_is_not_visible() -> None:
    warp = simple([[1, 0], [0, 1]], (0.25, 0))
    xy = torch.tensor([[10.0, 5], [70, 5], [-3, 5], [0, 0], [59.9, 39.9], [60, 5], [5, 40]])
    moved, visible = warp.points(xy, 40, 80)
    assert visible.tolist() == [True, False, False, True, True, False, False]
    torch.testing.assert_close(moved, xy + torch.tensor([20.0, 0]))


def test_limits_are_reached_but_not_passed() -> None:
    config = WarpConfig(rotation=40, scale=1.3, shift=0.2, bend=0.05)
    warps = [random_warp(generator(seed), config) for seed in range(300)]
    angles = torch.tensor([math.degrees(math.atan2(w.matrix[0, 1], w.matrix[0, 0])) for w in warps])
    scales = torch.tensor([float(w.matrix.det()) ** -0.5 for w in warps])
    shifts = torch.stack([w.shift for w in warps])
    assert 38 < angles.abs().max() <= 40 and abs(angles.mean()) < 5
    assert 1.28 < scales.max() <= 1.3 and 1 / 1.3 <= scales.min() < 0.79
    assert 0.19 < shifts.abs().max() <= 0.2
    grid = torch.rand(500, 2, dtype=torch.float64) - 0.5
    for warp in warps[:20]:
        bend = torch.sin(grid @ warp.directions.T + warp.phases) @ warp.amplitudes
        assert bend.norm(dim=1).max() <= 0.05


def test_the_generator_alone_decides() -> None:
    image = torch.rand(3, 40, 30)
    first = random_warp(generator(4)).image(image)
    assert torch.equal(random_warp(generator(4)).image(image), first)
    assert not torch.equal(random_warp(generator(5)).image(image), first)


def test_batches_types_and_gradients() -> None:
    warp = random_warp(generator(6))
    batch = torch.rand(2, 3, 33, 47, dtype=torch.float64, requires_grad=True)
    warped = warp.image(batch)
    assert warped.dtype == torch.float64
    torch.testing.assert_close(warped[1], warp.image(batch[1]))
    warped.sum().backward()
    assert batch.grad is not None and batch.grad.abs().sum() > 0
    points, _ = warp.points(torch.rand(4, 5, 2), 33, 47)
    assert points.shape == (4, 5, 2) and points.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_moves_nothing(dtype: torch.dtype) -> None:
    warp, image = random_warp(generator(7)), torch.rand(3, 300, 260)
    expected = warp.image(image.to(dtype).float())
    warped = warp.image(image.to(dtype))
    assert warped.dtype == dtype
    assert torch.equal(warped, expected.to(dtype))


def test_masks_keep_their_classes() -> None:
    mask = torch.randint(0, 3, (2, 50, 40), dtype=torch.uint8) * 100
    warped = random_warp(generator(7)).mask(mask, outside=255)
    assert warped.shape == mask.shape and warped.dtype == torch.uint8
    assert set(warped.unique().tolist()) == {0, 100, 200, 255}


@pytest.mark.parametrize(
    "changes",
    [
        {"rotation": 181},
        {"rotation": -1},
        {"scale": 0.9},
        {"scale": math.inf},
        {"shift": 1.5},
        {"bend": -0.1},
        {"cycles": 0},
        {"rotation": math.nan},
    ],
)
def test_bad_limits_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected rotation in 0\.\.180"):
        WarpConfig(**changes)


def test_folding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"could fold the picture: .* is 1\.57, .* at most 0\.9"):
        WarpConfig(bend=0.2, cycles=1, scale=1.25)
