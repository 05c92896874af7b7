"""Answers about single pictures, with features whose right answers are known by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from sketchfusion_plugins.features import Features, PixelFeatures
from sketchfusion_plugins.heads.query import PAPER
from sketchfusion_plugins.images import to_tensor
from sketchfusion_plugins.inference.answers import (
    describe,
    describe_files,
    features_of,
    match_pictures,
    recognise_files,
    segment_picture,
    spread_over_ink,
)
from sketchfusion_plugins.inference.models import find_config, fresh_encoder
from sketchfusion_plugins.inference.placement import Placement
from sketchfusion_plugins.problems import Problems
from sketchfusion_plugins.tasks.load import build_task
from sketchfusion_plugins.wrappers import device_of

STRIDE = 8


class Places(Features):
    """A descriptor of its own for every cell, the same in every picture."""

    def forward(self, image: Tensor) -> Tensor:
        rows, columns = image.shape[-2] // STRIDE, image.shape[-1] // STRIDE
        cells = torch.eye(rows * columns).unflatten(1, (rows, columns))
        return cells[None].repeat(len(image), 1, 1, 1)


class Colours(Features):
    """Mean distance of red, green and blue from white, per cell."""

    def forward(self, image: Tensor) -> Tensor:
        return F.avg_pool2d((1 - image) / 2, STRIDE)


def _drawing(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).rectangle(box, fill="black")
    return image


def test_matches_by_hand_between_different_shapes() -> None:
    # 128 x 64 at 64 px: half the size, 16 px of padding above. 32 x 64: the same size, 16 px left.
    sketch, photo = _drawing((128, 64), (10, 10, 20, 20)), _drawing((32, 64), (5, 5, 9, 9))
    # Centres of cells of the square: (20, 36), (28, 20), (4, 44).
    points = torch.tensor([[40.0, 40.0], [56.0, 8.0], [8.0, 56.0]])
    found = match_pictures(Places(), sketch, photo, 64, points=points)
    torch.testing.assert_close(found.source, points)
    # The last one falls into the photo's padding, whose nearest edge is x = 0.
    expected = torch.tensor([[4.0, 36.0], [12.0, 20.0], [0.0, 44.0]])
    torch.testing.assert_close(found.target, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.score[:2], torch.ones(2))
    assert found.score[2] < 0.9


def test_chosen_points_lie_on_the_ink_of_the_original() -> None:
    sketch = _drawing((100, 60), (30, 20, 70, 40))
    found = match_pictures(Places(), sketch, sketch, 128, count=5)
    assert found.source.shape == found.target.shape == (5, 2)
    low, high = torch.tensor([29.0, 19.0]), torch.tensor([72.0, 42.0])
    assert ((found.source >= low) & (found.source <= high)).all()
    # First the middle, then the corners.
    torch.testing.assert_close(found.source[0], torch.tensor([50.5, 30.5]), atol=1.0, rtol=0)
    corners = torch.tensor([[30.0, 20.0], [71.0, 20.0], [30.0, 41.0], [71.0, 41.0]])
    assert (torch.cdist(corners, found.source[1:]).amin(1) < 2).all()


def test_mutual_matches_are_cells_with_ink_inside_both_pictures() -> None:
    sketch, photo = _drawing((64, 64), (0, 0, 63, 63)), _drawing((64, 32), (0, 0, 1, 1))
    found = match_pictures(Places(), sketch, photo, 64, mutual=True, count=100)
    # All 64 cells have ink; the photo fills the rows of cells 2 to 5 of 8.
    assert len(found.source) == 4 * 8
    torch.testing.assert_close(found.target, found.source - torch.tensor([0.0, 16.0]))
    torch.testing.assert_close(found.score, torch.ones(32))
    dotted = _drawing((64, 64), (17, 25, 20, 28))
    (start,) = match_pictures(Places(), dotted, photo, 64, mutual=True).source.tolist()
    assert start == [20.0, 28.0]


@pytest.mark.parametrize("mutual", [True, False])
def test_matching_without_ink(mutual: bool) -> None:
    blank = Image.new("RGB", (50, 40), "white")
    with pytest.raises(ValueError, match="ink"):
        match_pictures(Places(), blank, _drawing((40, 40), (1, 1, 9, 9)), 64, mutual=mutual)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": torch.tensor([[5.0, 41.0]])}, "5,41 lies outside the sketch, which is 50 x 40"),
        ({"points": torch.tensor([[float("nan"), 1.0]])}, "lies outside"),
        ({"points": torch.zeros(3)}, r"points \[N, 2\]"),
        ({"points": torch.zeros(1, 2), "mutual": True}, "not both"),
        ({"count": 0}, "at least 1"),
    ],
)
def test_impossible_matching(options: dict[str, object], message: str) -> None:
    sketch = _drawing((50, 40), (1, 1, 9, 9))
    with pytest.raises(ValueError, match=message):
        match_pictures(Places(), sketch, sketch, 64, **options)  # type: ignore[arg-type]


def test_points_are_farthest_first() -> None:
    sketch = torch.ones(3, 8, 8)
    for x, y in ((0, 0), (7, 0), (0, 7), (3, 3)):
        sketch[:, y, x] = -1
    points = spread_over_ink(sketch, Placement(8, 8, 8), 9)
    # Mean (3, 3): nearest is (3.5, 3.5); the two far corners are equally far, the origin nearer.
    assert points[0].tolist() == [3.5, 3.5]
    assert {tuple(point) for point in points[1:3].tolist()} == {(7.5, 0.5), (0.5, 7.5)}
    assert points[3].tolist() == [0.5, 0.5] and len(points) == 4


def test_thin_lines_that_shrinking_has_made_pale_are_ink() -> None:
    drawing = Image.new("L", (2000, 2000), 255)
    ImageDraw.Draw(drawing).line((300, 1000, 1700, 1000), fill=0, width=2)
    small = to_tensor(drawing, 64)
    assert small.min() > PAPER
    points = spread_over_ink(small, Placement(2000, 2000, 64), 5)
    assert len(points) == 5 and (points[:, 1] - 32).abs().max() <= 1
    assert points[:, 0].min() < 11 and points[:, 0].max() > 53
    # On grey paper too, of which nothing is ink; nor is the white around a picture paper.
    grey = small - 0.05
    assert torch.equal(spread_over_ink(grey, Placement(2000, 2000, 64), 5), points)
    noise = 0.95 - 0.03 * torch.rand(3, 64, 64)
    noise[:, :, :20] = 1
    for blank in (torch.full((3, 64, 64), 0.92), noise):
        with pytest.raises(ValueError, match="no ink: nothing in it is darker than paper"):
            spread_over_ink(blank, Placement(24, 64, 64), 5)
    matches = match_pictures(Places(), drawing, drawing, 64, mutual=True)
    assert len(matches.source) and ((matches.source[:, 1] - 1000).abs() < 250).all()


def test_segment_of_a_photo_that_is_no_square() -> None:
    photo = Image.new("RGB", (96, 48), (0, 0, 255))
    photo.paste((255, 0, 0), (0, 0, 48, 48))
    sketch = Image.new("RGB", (40, 40), (255, 0, 0))
    mask = segment_picture(Colours(), sketch, photo, 96, threshold=0.75)
    assert mask.shape == (48, 96) and mask.dtype == torch.bool
    expected = torch.zeros(48, 96, dtype=torch.bool)
    expected[:, :48] = True
    # Cosine 1 on red, 1/2 on blue, 0 on padding: it changes between the centres of cells of 8 px.
    assert torch.equal(mask[4:44, :44], expected[4:44, :44])
    assert torch.equal(mask[:, 52:], expected[:, 52:])


def test_segment_by_a_sketch_without_ink() -> None:
    blank = Image.new("RGB", (40, 40), (255, 255, 255))
    with pytest.raises(ValueError, match="the sketch has no ink"):
        segment_picture(Colours(), blank, Image.new("RGB", (48, 48)), 96, threshold=0.5)


def _sideways(image: Image.Image) -> Image.Image:
    """The picture as a camera on its side keeps it: turned, with EXIF data to turn it back."""
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    return turned


@pytest.mark.parametrize(
    "options", [{}, {"mutual": True}, {"points": torch.tensor([[90.0, 50.0], [20.0, 8.0]])}]
)
def test_matches_are_in_the_frame_of_upright_pictures(options: dict[str, Any]) -> None:
    sketch, photo = _drawing((100, 60), (30, 20, 70, 40)), _drawing((40, 90), (5, 5, 30, 60))
    expected = match_pictures(Places(), sketch, photo, 64, **options)
    found = match_pictures(Places(), _sideways(sketch), _sideways(photo), 64, **options)
    for values, right in zip(found, expected, strict=True):
        assert torch.equal(values, right)


def test_segment_is_in_the_frame_of_the_upright_photo() -> None:
    photo = Image.new("RGB", (96, 48), (0, 0, 255))
    photo.paste((255, 0, 0), (0, 0, 48, 48))
    sketch = Image.new("RGB", (40, 20), (255, 0, 0))
    expected = segment_picture(Colours(), sketch, photo, 96, threshold=0.75)
    mask = segment_picture(Colours(), _sideways(sketch), _sideways(photo), 96, threshold=0.75)
    assert mask.shape == (48, 96) and torch.equal(mask, expected)


def test_trained_segmentation_is_the_tasks_own() -> None:
    encoder = fresh_encoder(find_config("tiny").replace(weights="random"))
    task = build_task("query_segmentation", encoder).eval()
    sketch, photo = _drawing((50, 40), (9, 9, 30, 30)), _drawing((64, 64), (5, 5, 40, 30))
    with torch.inference_mode():
        task.head.threshold.fill_(0.7)
        logits = task(to_tensor(sketch, 64)[None], to_tensor(photo, 64)[None])[0]
    mask = segment_picture(task, sketch, photo, 64)
    assert torch.equal(mask, logits > 0)
    with torch.inference_mode():
        enlarged = photo.resize((128, 128), Image.Resampling.BICUBIC)
        large = task(to_tensor(sketch, 64)[None], to_tensor(enlarged, 128)[None])
        expected = F.interpolate(large[None], (64, 64), mode="bilinear", antialias=True)[0, 0] > 0
    mask = segment_picture(task, sketch, photo, 64, photo_size=128)
    assert mask.shape == (64, 64) and (mask == expected).float().mean() > 0.97
    with pytest.raises(ValueError, match="learned its threshold"):
        segment_picture(task, sketch, photo, 64, threshold=0.2)


@pytest.mark.parametrize("threshold", [None, 1.5, float("nan")])
def test_features_need_a_threshold(threshold: float | None) -> None:
    sketch = _drawing((50, 40), (9, 9, 30, 30))
    with pytest.raises(ValueError, match="PixelFeatures has learned no threshold"):
        segment_picture(PixelFeatures(), sketch, sketch, 64, threshold)


def test_descriptors_by_kind_of_model() -> None:
    encoder = fresh_encoder(find_config("tiny").replace(weights="random"))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    retrieval = build_task("retrieval", encoder, dim=16).eval()
    correspondence = build_task("correspondence", encoder).eval()
    with torch.inference_mode():
        torch.testing.assert_close(describe(retrieval, images), retrieval(images))
        expected = correspondence.features.describe(images)
    torch.testing.assert_close(describe(correspondence, images), expected)
    torch.testing.assert_close(describe(features_of(correspondence), images), expected)
    assert device_of(encoder) == device_of(PixelFeatures()) == torch.device("cpu")


def test_batches_do_not_change_descriptors(tmp_path: Path) -> None:
    paths = []
    for number in range(5):
        paths.append(tmp_path / f"{number}.png")
        _drawing((40 + 7 * number, 50), (number, 5, 20, 20 + number)).save(paths[-1])
    paths.insert(2, tmp_path / "none.png")
    results = []
    for batch_size in (1, 2, 9):
        problems = Problems()
        found = list(describe_files(PixelFeatures(), paths, 64, problems, batch_size=batch_size))
        names = [path for part, _ in found for path in part]
        assert names == [path for path in paths if path.name != "none.png"]
        assert len(problems.found) == 1
        results.append(torch.cat([vectors for _, vectors in found]).numpy())
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_impossible_files_and_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        list(describe_files(PixelFeatures(), [tmp_path], 64, Problems(), batch_size=0))
    with pytest.raises(ValueError, match="knows no classes"):
        list(recognise_files(PixelFeatures(), [tmp_path], 64, Problems()))
