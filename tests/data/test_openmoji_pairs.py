"""OpenMoji's pairs: what is warped, where points lie, and that seed and index decide it all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sketchfusion_plugins.data.openmoji import Concept
from sketchfusion_plugins.data.openmoji_drawings import Drawings
from sketchfusion_plugins.data.openmoji_pairs import (
    EmojiPictures,
    OpenMojiCorrespondence,
    spread_points,
)
from sketchfusion_plugins.data.pictures import instance_number
from sketchfusion_plugins.data.warps import WarpConfig

STILL = WarpConfig(rotation=0, scale=1, shift=0, bend=0)
SIZE = 48


@pytest.fixture
def drawings() -> Drawings:
    """Three concepts: a frame, a bar, and a single dot of ink."""
    line = np.full((3, SIZE, SIZE, 3), 255, np.uint8)
    line[0, 10:38, 10:38] = 0
    line[0, 12:36, 12:36] = 255
    line[1, 20:23, 5:43] = 0
    line[2, 24, 30] = 0
    color = line.copy()
    color[..., 1] = 255
    coverage = 255 - line[..., 0]
    names = ("frame", "bar", "dot")
    concepts = tuple(
        Concept(f"1F60{i}", n, "g", "flat" if n == "bar" else "deep", Path(n))
        for i, n in enumerate(names)
    )
    return Drawings(concepts, line, color, coverage, names)


def test_pictures(drawings: Drawings) -> None:
    data = EmojiPictures(drawings.concepts, drawings.line, ["deep", "other", "flat"])
    assert len(data) == 3
    assert data.labels.tolist() == [data[i]["label"] for i in range(3)] == [0, 2, 0]
    sample = data[1]
    assert sample["key"] == "1F601/0"
    assert sample["instance"] == instance_number("flat", "1F601") == int(data.instances[1])
    expected = torch.from_numpy(drawings.line[1]).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(sample["image"], expected)
    gallery = EmojiPictures(drawings.concepts, drawings.color)
    assert torch.equal(gallery.instances, data.instances)
    assert gallery.categories == ("deep", "flat")


def test_repeats_are_warped_differently_and_named(drawings: Drawings) -> None:
    data = EmojiPictures(drawings.concepts, drawings.line, warp=WarpConfig(), repeats=2)
    assert len(data) == len(data.labels) == len(data.instances) == 6
    assert [data[i]["key"] for i in range(6)] == [f"1F60{i}/{r}" for r in (0, 1) for i in range(3)]
    assert not torch.equal(data[0]["image"], data[3]["image"])
    assert data[0]["label"] == data[3]["label"] and data[0]["instance"] == data[3]["instance"]
    assert data[3]["instance"] == int(data.instances[3])


@pytest.mark.parametrize(
    "make",
    [
        lambda d, seed: EmojiPictures(d.concepts, d.line, warp=WarpConfig(), seed=seed),
        lambda d, seed: OpenMojiCorrespondence(d, source_warp=WarpConfig(), seed=seed, repeats=2),
    ],
    ids=["pictures", "correspondence"],
)
def test_seed_and_index_decide(
    drawings: Drawings, make: Any, same_in_workers: Callable[..., list[Any]]
) -> None:
    same_in_workers(make(drawings, 3))
    one, again, other = (make(drawings, seed)[0] for seed in (3, 3, 4))
    image = "image" if "image" in one else "target"
    assert torch.equal(one[image], again[image])
    assert not torch.equal(one[image], other[image])
    # Another selection of concepts changes nothing for those that stay.
    part = drawings.subset([2, 0])
    assert torch.equal(make(part, 3)[1][image], one[image])


def test_points_lie_on_ink_and_far_apart(drawings: Drawings) -> None:
    for seed in range(10):
        points, distinct = spread_points(drawings.line[0], 8, torch.Generator().manual_seed(seed))
        columns, rows = points.long().unbind(1)
        assert (drawings.line[0][rows, columns, 0] == 0).all()
        assert (points - points.floor() == 0.5).all()
        distances = torch.cdist(points, points) + 1e9 * torch.eye(8)
        # Eight points evenly spread over the frame's outline of 4 x 26 px are 13 apart.
        assert distances.min() > 8
        assert distinct.all()


def test_scarce_ink_repeats_points_that_are_not_visible(drawings: Drawings) -> None:
    generator = torch.Generator().manual_seed(0)
    points, distinct = spread_points(drawings.line[2], 3, generator)
    assert points.tolist() == [[30.5, 24.5]] * 3
    assert distinct.tolist() == [True, False, False]
    points, distinct = spread_points(np.full((5, 5, 3), 255, np.uint8), 3, generator)
    assert points.shape == (3, 2) and not distinct.any()
    assert OpenMojiCorrespondence(drawings, points=3, warp=STILL)[2]["visible"].sum() == 1


def test_without_a_warp_both_sides_agree(drawings: Drawings) -> None:
    sample = OpenMojiCorrespondence(drawings, points=5, warp=STILL)[0]
    torch.testing.assert_close(sample["source_points"], sample["target_points"])
    torch.testing.assert_close(sample["source"][0], sample["target"][0], atol=1e-4, rtol=0)
    assert sample["visible"].all() and sample["key"] == "1F600/0" and sample["label"] == 0


@pytest.mark.parametrize("source_warp", [None, WarpConfig()], ids=["target", "both"])
def test_points_stay_on_ink_on_both_sides(
    drawings: Drawings, source_warp: WarpConfig | None
) -> None:
    data = OpenMojiCorrespondence(drawings.subset([0, 1]), 6, None, source_warp, repeats=10)
    moved = seen = 0
    for sample in data:
        for image, points in (("source", "source_points"), ("target", "target_points")):
            assert sample[image].shape == (3, SIZE, SIZE)
            for (x, y), visible in zip(sample[points].tolist(), sample["visible"], strict=True):
                if visible:
                    seen += 1
                    row, column = int(y), int(x)
                    around = sample[image][
                        0, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2
                    ]
                    assert around.min() < 0.3
        moved += int((sample["source_points"] - sample["target_points"]).norm(dim=1).mean() > 2)
    assert moved > 15 and seen > 150


@pytest.mark.parametrize("side", ["source", "target"])
def test_warped_out_of_the_picture_is_not_visible(drawings: Drawings, side: str) -> None:
    far = WarpConfig(rotation=0, scale=1, shift=1, bend=0)
    warps = (far, STILL) if side == "target" else (STILL, far)
    data = OpenMojiCorrespondence(drawings, 6, *warps, repeats=20)
    hidden = 0
    for index in range(len(data)):
        sample = data[index]
        points = sample[f"{side}_points"]
        outside = ((points < 0) | (points >= SIZE)).any(1)
        assert not (outside & sample["visible"]).any()
        hidden += int(outside.sum())
    assert hidden > 50


def test_iteration_ends(drawings: Drawings) -> None:
    assert len(list(EmojiPictures(drawings.concepts, drawings.line, repeats=2))) == 6
    assert len(list(OpenMojiCorrespondence(drawings))) == 3


def test_bad_input_is_refused(drawings: Drawings) -> None:
    with pytest.raises(ValueError, match=r"expected pictures \[3, S, S, 3\]"):
        EmojiPictures(drawings.concepts, drawings.line[:2])
    with pytest.raises(ValueError, match=r"without \['flat'\]"):
        EmojiPictures(drawings.concepts, drawings.line, ["deep"])
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        EmojiPictures(drawings.concepts, drawings.line, repeats=0)
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        OpenMojiCorrespondence(drawings, points=0)
