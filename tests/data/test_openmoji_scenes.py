"""Scenes of coloured pictures: what is in them, and that the mask is what the picture covers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sketchfusion_plugins.data.openmoji import Concept
from sketchfusion_plugins.data.openmoji_drawings import Drawings
from sketchfusion_plugins.data.openmoji_scenes import OpenMojiScenes
from sketchfusion_plugins.data.warps import WarpConfig

STILL = WarpConfig(rotation=0, scale=1, shift=0, bend=0)
SIZE = 32
# No mixture with the light background is one of these.
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255), (0, 0, 0), (0, 255, 255)]


@pytest.fixture
def drawings() -> Drawings:
    """Six squares of their own colour; the last two are near copies."""
    color = np.full((6, SIZE, SIZE, 3), 255, np.uint8)
    coverage = np.zeros((6, SIZE, SIZE), np.uint8)
    for index, colour in enumerate(COLOURS):
        color[index, 8:24, 8:24] = colour
        coverage[index, 8:24, 8:24] = 255
    concepts = tuple(Concept(f"1F60{i}", str(i), "g", f"s{i % 2}", Path("x")) for i in range(6))
    return Drawings(concepts, color, color, coverage, ("a", "b", "c", "d", "e", "e"))


def shown(photo: torch.Tensor) -> list[int]:
    """Colours that are there, on at least ten pixels."""
    found = []
    for index, colour in enumerate(COLOURS):
        target = torch.tensor(colour) / 127.5 - 1
        if ((photo - target[:, None, None]).abs().amax(0) < 1e-3).sum() >= 10:
            found.append(index)
    return found


def test_mask_is_where_the_sketched_colour_is(drawings: Drawings) -> None:
    data = OpenMojiScenes(drawings.subset(range(5)), warp=STILL, repeats=4)
    places = set()
    for index in range(len(data)):
        sample = data[index]
        colour = torch.tensor(COLOURS[index % 5]) / 127.5 - 1
        exact = (sample["photo"] - colour[:, None, None]).abs().amax(0) < 1e-3
        assert torch.equal(sample["mask"], exact)
        assert sample["mask"].sum() == 256
        assert sample["valid"].all() and sample["valid"].shape == (2 * SIZE, 2 * SIZE)
        assert len(shown(sample["photo"])) == 4
        assert sample["label"] == index % 5 % 2
        assert sample["photo"].min() >= -1 and sample["photo"].max() <= 1
        places.add(tuple((sample["mask"].nonzero()[0] // SIZE).tolist()))
        torch.testing.assert_close(
            sample["sketch"],
            torch.from_numpy(drawings.line[index % 5]).permute(2, 0, 1) / 127.5 - 1,
        )
    assert len(places) == 4


def test_near_copies_of_the_sketch_never_distract(drawings: Drawings) -> None:
    data = OpenMojiScenes(drawings, warp=STILL, repeats=10)
    for index in range(len(data)):
        assert not {4, 5} <= set(shown(data[index]["photo"]))


def test_warped_masks_follow_their_picture(drawings: Drawings) -> None:
    data = OpenMojiScenes(drawings.subset(range(5)), warp=WarpConfig(), repeats=4)
    sizes = set()
    for index in range(len(data)):
        sample = data[index]
        colour = torch.tensor(COLOURS[index % 5]) / 127.5 - 1
        near = (sample["photo"] - colour[:, None, None]).abs().amax(0) < 0.2
        assert (near & ~sample["mask"]).sum() == 0
        assert near.sum() > 0.3 * sample["mask"].sum() > 0
        sizes.add(int(sample["mask"].sum()))
    assert len(sizes) > 5


def test_absent_sketches_have_empty_masks(drawings: Drawings) -> None:
    none = OpenMojiScenes(drawings, absent=1.0, warp=STILL, repeats=2)
    for index in range(len(none)):
        assert not none[index]["mask"].any()
        found = shown(none[index]["photo"])
        assert len(found) == 4 and index % 6 not in found
    some = OpenMojiScenes(drawings, absent=0.5, repeats=30)
    share = np.mean([bool(some[index]["mask"].any()) for index in range(len(some))])
    assert 0.35 < share < 0.65


def test_one_cell_fills_the_scene(drawings: Drawings) -> None:
    sample = OpenMojiScenes(drawings, cells=1, warp=STILL)[2]
    assert torch.equal(sample["mask"], torch.from_numpy(drawings.coverage[2] > 0))
    assert shown(sample["photo"]) == [2]


def test_half_covered_pixels_show_the_background(drawings: Drawings) -> None:
    thin = drawings.coverage // 4
    color = (255 - (255 - drawings.color.astype(int)) * (thin[..., None] / 255)).astype(np.uint8)
    faint = Drawings(drawings.concepts, drawings.line, color, thin, drawings.family)
    sample = OpenMojiScenes(faint, cells=1, warp=STILL)[0]
    background, inside = (sample["photo"][:, y, y] for y in (0, 16))
    paint = torch.tensor(COLOURS[0]) / 127.5 - 1
    torch.testing.assert_close(inside, background * 0.753 + paint * 0.247, atol=0.01, rtol=0)
    assert not sample["mask"].any()


def test_seed_and_index_decide(
    drawings: Drawings, same_in_workers: Callable[..., list[Any]]
) -> None:
    same_in_workers(OpenMojiScenes(drawings, absent=0.2, seed=1))
    one, again, other = (OpenMojiScenes(drawings, seed=seed)[0]["photo"] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_bad_input_is_refused(drawings: Drawings) -> None:
    with pytest.raises(ValueError, match="need drawings of 5 families, got 4"):
        OpenMojiScenes(drawings.subset([0, 1, 2, 3, 3]))
    for arguments in ({"cells": 0}, {"absent": 1.5}, {"absent": -0.1}):
        with pytest.raises(ValueError, match=r"cells must be at least 1 and absent in 0\.\.1"):
            OpenMojiScenes(drawings, **arguments)
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        OpenMojiScenes(drawings, repeats=0)
