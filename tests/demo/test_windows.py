"""Where in a photo: windows cover it, and the one that shows the drawing wins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from sketchfusion_plugins.demo.pictures import Box
from sketchfusion_plugins.demo.windows import SHARES, Windows, _boxes, describe_windows
from sketchfusion_plugins.features import PixelFeatures


@pytest.mark.parametrize(("width", "height"), [(100, 100), (301, 97), (50, 333), (8, 500)])
def test_windows_of_every_size_cover_the_photo(width: int, height: int) -> None:
    boxes = list(_boxes(width, height))
    sides = [round(share * max(width, height)) for share in SHARES]
    assert [box.side for box in boxes] == sorted((box.side for box in boxes), reverse=True)
    assert {box.side for box in boxes} == set(sides)
    assert len(set(boxes)) == len(boxes)
    for side in sides:
        seen = np.zeros((height, width), dtype=bool)
        for box in boxes:
            if box.side == side:
                top, left = max(box.top, 0), max(box.left, 0)
                seen[top : box.top + side, left : box.left + side] = True
        assert seen.all()


def test_the_window_that_shows_the_drawing_is_found() -> None:
    photo = Image.new("RGB", (200, 200), "white")
    pen = ImageDraw.Draw(photo)
    pen.rectangle((10, 10, 90, 90), outline="black", width=6)
    pen.line((110, 110, 190, 190), fill="black", width=6)
    for corner, shape in (((0, 0), "square"), ((100, 100), "line")):
        cut = photo.crop((*corner, corner[0] + 100, corner[1] + 100))
        model = PixelFeatures()
        windows = describe_windows(model, photo, 64)
        query = describe_windows(model, cut, 64).descriptors[0]
        box, score = windows.best(query)
        assert box == Box(*corner, 100), shape
        assert score == pytest.approx(1, abs=1e-5)


def test_blank_windows_are_left_out_unless_all_are() -> None:
    photo = Image.new("RGB", (200, 200), "white")
    assert describe_windows(PixelFeatures(), photo, 64).boxes == (Box(0, 0, 200),)
    ImageDraw.Draw(photo).rectangle((150, 150, 180, 180), fill="black")
    boxes = describe_windows(PixelFeatures(), photo, 64).boxes
    assert all(box.left + box.side > 150 and box.top + box.side > 150 for box in boxes)
    assert Box(100, 100, 100) in boxes


def test_the_best_is_the_one_of_the_largest_cosine() -> None:
    boxes = tuple(Box(number, 0, 1) for number in range(3))
    windows = Windows(boxes, torch.eye(3))
    box, score = windows.best(torch.tensor([0.0, 0.8, 0.6]))
    assert (box, score) == (boxes[1], pytest.approx(0.8))
