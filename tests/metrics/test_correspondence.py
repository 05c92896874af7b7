"""PCK, counted by hand and by the protocols' own formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from sketchfusion_plugins.metrics.correspondence import (
    PROTOCOLS,
    KeyPointScores,
    Protocol,
    key_point_scores,
)


def points(*errors: float) -> torch.Tensor:
    """Found points of one image that miss (0, 0) by these distances."""
    return torch.tensor([[[error, 0.0] for error in errors]])


def test_published_protocols() -> None:
    assert list(PROTOCOLS) == ["pscnet", "sketchfusion"]
    assert PROTOCOLS["pscnet"] == Protocol("pscnet", 256, True, (1, 5, 10))
    assert PROTOCOLS["sketchfusion"] == Protocol("sketchfusion", 336, False, (1, 5, 10))


def test_pck_by_hand() -> None:
    # Limits of 256 px: 2.56, 12.8 and 25.6.
    found = torch.cat([points(1, 3, 13, 26), points(2, 2, 2, 100)])
    true = torch.zeros(2, 4, 2)
    visible = torch.tensor([[True] * 4, [True, False, False, True]])
    scores = key_point_scores(found, true, (256, 256), "pscnet", visible)
    assert scores.right.tolist() == [[1, 2, 3], [1, 1, 1]]
    assert scores.visible.tolist() == [4, 2]
    assert scores.items.tolist() == [[0.25, 0.5, 0.75], [0.5, 0.5, 0.5]]
    assert scores.per_image == {1: 0.375, 5: 0.5, 10: 0.625}
    assert scores.per_point == {1: 2 / 6, 5: 3 / 6, 10: 4 / 6}
    assert scores.excluded == 0


@pytest.mark.parametrize(("inclusive", "expected"), [(True, 2), (False, 1)])
def test_a_point_at_the_limit(inclusive: bool, expected: int) -> None:
    # 12.5 % of 256 px are exactly 32 px.
    protocol = Protocol("own", 256, inclusive, (12.5,))
    found = points(32, 31.999, 32.001)
    scores = key_point_scores(found, torch.zeros(1, 3, 2), (256, 256), protocol)
    assert scores.right.tolist() == [[expected]]


def test_pscnets_own_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(256, (30, 8, 2), generator=generator).float()
    found = true + torch.randint(-20, 21, (30, 8, 2), generator=generator)
    # 15 and 20 px away lie exactly 25 px away, which is less than 25.6.
    error = np.sqrt(np.square(true.numpy() - found.numpy()).sum(-1))
    expected = {alpha: (error <= 256 * alpha / 100).mean(1).mean() for alpha in (5, 10)}
    scores = key_point_scores(found, true, (256, 256), "pscnet")
    for alpha, value in expected.items():
        assert 0.1 < value < 0.99
        assert scores.per_image[alpha] == pytest.approx(value)
        assert scores.per_point[alpha] == pytest.approx(value)  # All points are visible.


@pytest.mark.parametrize("image_size", [(512, 512), (512, 300), (130, 512)])
def test_points_are_scaled_by_the_longer_side(image_size: tuple[int, int]) -> None:
    # 51.2 px are 10 % of 512 px.
    scores = key_point_scores(points(51, 52), torch.zeros(1, 2, 2), image_size, "sketchfusion")
    assert scores.right[0, 2] == 1


def test_images_without_a_visible_point_are_excluded_and_counted() -> None:
    found = torch.cat([points(1, 1), points(float("nan"), float("inf"))])
    visible = torch.tensor([[True, True], [False, False]])
    scores = key_point_scores(found, torch.zeros(2, 2, 2), (336, 336), "sketchfusion", visible)
    assert scores.excluded == 1
    assert scores.items.shape == (1, 3)
    assert scores.per_image == {1: 1, 5: 1, 10: 1}


def test_no_image_at_all() -> None:
    scores = key_point_scores(torch.zeros(0, 8, 2), torch.zeros(0, 8, 2), (256, 256), "pscnet")
    assert all(math.isnan(value) for value in scores.per_image.values())
    assert all(math.isnan(value) for value in scores.per_point.values())


def test_scores_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    true = 200 * torch.rand(5, 8, 2, generator=generator)
    found = true + 12 * torch.randn(5, 8, 2, generator=generator)
    visible = torch.rand(5, 8, generator=generator) > 0.4
    whole = key_point_scores(found, true, (256, 200), "pscnet", visible)
    parts = [
        key_point_scores(found[rows], true[rows], (256, 200), "pscnet", visible[rows])
        for rows in (slice(0, 2), slice(2, 5))
    ]
    total = parts[0] + parts[1]
    assert torch.equal(total.right, whole.right)
    assert total.per_image == whole.per_image


def test_protocols_do_not_mix() -> None:
    arguments = (points(1), torch.zeros(1, 1, 2), (256, 256))
    with pytest.raises(ValueError, match=r"'pscnet' and 'sketchfusion' do not compare"):
        key_point_scores(*arguments, "pscnet") + key_point_scores(*arguments, "sketchfusion")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "pf-pascal"}, r"unknown protocol 'pf-pascal'; there are 'pscnet', 'sketch"),
        ({"true": torch.zeros(1, 3, 2)}, r"\[1, 2, 2\] and \[1, 3, 2\]"),
        ({"found": torch.zeros(2, 2), "true": torch.zeros(2, 2)}, r"\[B, N, 2\]"),
        ({"image_size": (0, 5)}, r"image_size as \(height, width\)"),
        ({"visible": torch.ones(1, 3, dtype=torch.bool)}, r"bool \[1, 2\].*\[1, 3\]"),
        ({"visible": torch.ones(1, 2)}, r"bool \[1, 2\].*float32"),
        ({"found": points(1, float("nan"))}, r"visible point is NaN or infinite"),
    ],
)
def test_wrong_input(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "found": points(1, 2),
        "true": torch.zeros(1, 2, 2),
        "image_size": (256, 256),
        "protocol": "pscnet",
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        key_point_scores(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("own", 0, True), r"size must be at least 1 px"),
        (("own", 256, True, ()), r"percentages above 0, got \(\)"),
        (("own", 256, True, (5, -1)), r"percentages above 0, got \(5, -1\)"),
    ],
)
def test_wrong_protocol(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Protocol(*arguments)


def test_wrong_counts() -> None:
    with pytest.raises(ValueError, match=r"right \[images, 3\].*\[2, 2\] and \[2\]"):
        KeyPointScores(PROTOCOLS["pscnet"], torch.zeros(2, 2), torch.zeros(2))
