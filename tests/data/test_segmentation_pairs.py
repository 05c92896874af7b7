"""Sketch-query segmentation from folders: queries, masks, sizes, and what is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sketchfusion_plugins.data.segmentation_pairs import (
    SketchSegmentation,
    read_classes,
    read_mask,
)
from sketchfusion_plugins.data.task_data import labelled_mask
from sketchfusion_plugins.inference.placement import Placement
from sketchfusion_plugins.losses.query import query_segmentation_loss
from sketchfusion_plugins.metrics.query_segmentation import query_segmentation_scores


@pytest.fixture
def root(tmp_path: Path, draw_picture: Callable[..., Path]) -> Path:
    """One photo of a cat left and a dog right, one of a dog alone with an ignored stripe."""
    (tmp_path / "classes.json").write_text(json.dumps({"dog": 7, "cat": 3, "owl": 9}))
    both = np.zeros((20, 40), np.uint8)
    both[5:15, :10], both[5:15, 30:] = 3, 7
    alone = np.zeros((30, 30), np.uint8)
    alone[:, :15], alone[:, 15:18] = 7, 255
    for name, mask in (("both", both), ("alone", alone)):
        draw_picture(tmp_path / "photos" / f"{name}.jpg", (90, 90, 90), mask.shape[::-1])
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    for number in range(6):
        draw_picture(tmp_path / "sketches" / "cat" / f"{number}.png", "white")
        draw_picture(tmp_path / "sketches" / "dog" / f"{number}.png", "black", (10, 20))
        draw_picture(tmp_path / "sketches" / "owl" / f"{number}.png", "white")
    return tmp_path


def test_every_photo_is_asked_for_what_it_holds(
    root: Path, same_in_workers: Callable[..., list[Any]]
) -> None:
    data = SketchSegmentation(root, size=20, progress=False)
    assert data.categories == ("cat", "dog", "owl")
    queries = [data[i]["key"].split("/")[0] for i in range(3)]
    assert queries == ["alone.jpg dog", "both.jpg cat", "both.jpg dog"]
    assert data.labels.tolist() == [data[i]["label"] for i in range(3)] == [1, 0, 1]
    cat = data[1]
    # The photo keeps its aspect ratio and fills rows 5 to 14.
    expected = torch.zeros(20, 20, dtype=torch.bool)
    expected[7:12, :5] = True
    assert torch.equal(cat["mask"], expected)
    assert cat["photo"].shape == cat["sketch"].shape == (3, 20, 20)
    dog = data[0]
    assert dog["mask"].float().mean() == 0.5 and not dog["valid"][:, 10:12].any()
    assert dog["valid"].float().mean() == 0.9
    # A sketch keeps its aspect ratio, between white.
    assert (dog["sketch"][:, :, 0] == 1).all() and (dog["sketch"][:, :, 10] == -1).all()
    same_in_workers(data)


@pytest.mark.parametrize("size", [(40, 20), (33, 47), (90, 7), (24, 24)])
def test_photos_lie_where_segment_puts_them(
    root: Path, draw_picture: Callable[..., Path], size: tuple[int, int]
) -> None:
    draw_picture(root / "photos" / "both.jpg", (90, 90, 90), size)
    Image.fromarray(np.full(size[::-1], 3, np.uint8)).save(root / "masks" / "both.png")
    (item,) = SketchSegmentation(root, 32, ["cat"], progress=False)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    Placement(*size, 32).crop(inside).fill_(True)
    assert torch.equal(item["valid"], inside) and torch.equal(item["mask"], inside)
    assert (item["photo"][:, ~inside] == 1).all() and (item["photo"][:, inside] < 0).all()
    # What lies in the padding counts neither in the loss nor in a figure.
    batch = {name: item[name][None] for name in ("mask", "valid")}
    predicted = inside[None]
    assert query_segmentation_scores(predicted, labelled_mask(batch)).pixel_accuracy == 1
    assert query_segmentation_scores(~predicted, labelled_mask(batch)).pixel_accuracy == 0
    losses = [
        query_segmentation_loss(torch.where(inside, 1.0, outside)[None], labelled_mask(batch))
        for outside in (-9.0, 9.0)
    ]
    assert losses[0] == losses[1]


def test_repeats_change_the_sketch_and_seeds_too(root: Path) -> None:
    data = SketchSegmentation(root, 16, repeats=8, progress=False)
    assert len(data) == 24 and len(data.labels) == 24
    assert len({data[i]["key"] for i in range(0, 24, 3)}) > 2
    assert all(data[i]["key"].startswith("alone.jpg dog/") for i in range(0, 24, 3))
    keys = {
        seed: [SketchSegmentation(root, 16, seed=seed, progress=False)[i]["key"] for i in range(3)]
        for seed in (0, 0, 1, 2)
    }
    assert len({tuple(k) for k in keys.values()}) > 1


def test_a_limit_keeps_the_first_photos_of_every_category(root: Path) -> None:
    every = SketchSegmentation(root, 16, progress=False).queries
    first = {name: photo for photo, name in reversed(every)}
    limited = SketchSegmentation(root, 16, limit=1, progress=False)
    assert len(limited.queries) < len(every)
    assert {name: photo for photo, name in limited.queries} == first
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        SketchSegmentation(root, 16, limit=0, progress=False)


def test_a_photo_is_not_asked_for_what_resizing_leaves_nothing_of(root: Path) -> None:
    mask = np.zeros((20, 40), np.uint8)
    # Of rows and columns of a photo 40 px wide, every fifth is read for 8 px: 2, 7, 12, ...
    mask[3:7, 3:7], mask[5:15, 30:] = 3, 7
    Image.fromarray(mask).save(root / "masks" / "both.png")
    message = r"1 of 3 queries are left out: resized to 8 px, .* \(the first: cat in .*both\.jpg\)"
    with pytest.warns(UserWarning, match=message) as told:
        data = SketchSegmentation(root, 8, progress=False)
    assert len(told) == 1 and told[0].filename == __file__
    assert [(photo.stem, name) for photo, name in data.queries] == [
        ("alone", "dog"),
        ("both", "dog"),
    ]
    # It holds a cat in truth, and is not trained on where cats are held out.
    assert [photo.stem for photo, _ in data.only(["dog"], without=["cat"]).queries] == ["alone"]
    with pytest.raises(ValueError, match=r"any of cat of which 8 px leave a pixel; take a larger"):
        data.only(["cat"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(SketchSegmentation(root, 40, progress=False).queries) == 3


@pytest.mark.filterwarnings("ignore:.* queries are left out")
def test_every_query_has_a_pixel_of_what_it_asks_for(
    root: Path, draw_picture: Callable[..., Path]
) -> None:
    generator = np.random.default_rng(0)
    held = 3
    for number in range(40):
        mask = np.zeros((60, 90), np.uint8)
        for value in (3, 7, 9):
            row, column = generator.integers(0, (55, 85))
            mask[row : row + 5, column : column + 5] = value
        held += len(np.unique(mask)) - 1
        draw_picture(root / "photos" / f"p{number}.png", (9, 9, 9), (90, 60))
        Image.fromarray(mask).save(root / "masks" / f"p{number}.png")
    data = SketchSegmentation(root, 10, progress=False)
    assert data.vanished and len(data.vanished) + len(data.queries) == held
    assert all(data[i]["mask"].any() for i in range(len(data)))


def test_a_photo_of_which_nothing_is_left_is_not_asked_for(
    root: Path, draw_picture: Callable[..., Path]
) -> None:
    draw_picture(root / "photos" / "long.png", (9, 9, 9), (4000, 10))
    Image.fromarray(np.full((10, 4000), 3, np.uint8)).save(root / "masks" / "long.png")
    with pytest.warns(UserWarning, match=r"cat in .*long\.png"):
        data = SketchSegmentation(root, 16, progress=False)
    assert {photo.stem for photo, _ in data.queries} == {"alone", "both"}


def test_a_sketch_of_which_nothing_is_left_is_named(
    root: Path, draw_picture: Callable[..., Path]
) -> None:
    for path in (root / "sketches" / "cat").iterdir():
        path.unlink()
    draw_picture(root / "sketches" / "cat" / "long.png", "white", (4000, 10))
    data = SketchSegmentation(root, 16, ["cat"], progress=False)
    with pytest.raises(ValueError, match=r"cat/long\.png: an image of 4000 x 10 px vanishes"):
        data[0]


def test_photos_of_every_kind_are_found(root: Path, draw_picture: Callable[..., Path]) -> None:
    for kind in ("gif", "tif"):
        draw_picture(root / "photos" / f"{kind}.{kind}", (9, 9, 9), (6, 6))
        Image.fromarray(np.full((6, 6), 9, np.uint8)).save(root / "masks" / f"{kind}.png")
    data = SketchSegmentation(root, 16, ["owl"], progress=False)
    assert [photo.name for photo, _ in data.queries] == ["gif.gif", "tif.tif"]
    assert data[0]["photo"].max() < 0


def test_zero_shot_asks_for_some_categories(root: Path) -> None:
    data = SketchSegmentation(root, 16, ["cat"], progress=False)
    assert len(data) == 1 and data[0]["label"] == 0
    with pytest.raises(ValueError, match="holds any of owl"):
        SketchSegmentation(root, 16, ["owl"], progress=False)
    with pytest.raises(ValueError, match=r"does not name \['cow'\], known: cat, dog, owl"):
        SketchSegmentation(root, 16, ["cow"], progress=False)
    with pytest.raises(ValueError, match="size and repeats must be at least 1, got 0 and 1"):
        SketchSegmentation(root, 0)


def test_a_part_is_what_its_categories_alone_would_be(root: Path) -> None:
    whole = SketchSegmentation(root, 16, progress=False)
    part = whole.only(["dog"], repeats=3)
    alone = SketchSegmentation(root, 16, ["dog"], repeats=3, progress=False)
    assert len(part) == len(alone) == 6 and part.labels.tolist() == alone.labels.tolist()
    assert [part[i]["key"] for i in range(6)] == [alone[i]["key"] for i in range(6)]
    assert len(whole) == 3
    # The other dog is with a cat.
    assert [query[0].stem for query in whole.only(["dog"], without=["cat"]).queries] == ["alone"]
    with pytest.raises(ValueError, match="holds any of cat holds one of dog too, which are held"):
        whole.only(["cat"], without=["dog"])
    with pytest.raises(ValueError, match="holds any of owl"):
        whole.only(["owl"])
    for wrong in (["cow"], []):
        with pytest.raises(ValueError, match="expected some of cat, dog, owl, got"):
            whole.only(wrong)


@pytest.mark.parametrize("missing", ["classes.json", "photos", "masks/both.png", "sketches"])
def test_missing_files_say_how_they_should_lie(root: Path, missing: str) -> None:
    (root / missing).rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"{missing} is missing.*masks/<name>\.png"):
        SketchSegmentation(root, 16, progress=False)


def test_hidden_files_are_no_photos(root: Path) -> None:
    """What macOS packs beside every file of an archive."""
    for folder in ("photos", "sketches/cat"):
        (root / folder / "._both.jpg").write_bytes(b"\0\5\x16\7")
    data = SketchSegmentation(root, 16, progress=False)
    assert [photo.name for photo, _ in data.queries] == ["alone.jpg", "both.jpg", "both.jpg"]


def test_photos_of_one_stem_are_refused(root: Path, draw_picture: Callable[..., Path]) -> None:
    # Sorted by name they are not neighbours.
    for name in ("both.new.jpg", "both.png"):
        draw_picture(root / "photos" / name, (9, 9, 9), (40, 20))
    (root / "masks" / "both.new.png").write_bytes((root / "masks" / "both.png").read_bytes())
    with pytest.raises(ValueError, match=r"both\.png: another photo has the same stem.* Rename"):
        SketchSegmentation(root, 16, progress=False)


def test_a_category_without_sketches_is_refused(root: Path) -> None:
    for path in (root / "sketches" / "dog").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="has no sketch of dog"):
        SketchSegmentation(root, 16, progress=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "expected categories with distinct values of"),
        ("{}", "expected categories"),
        ('{"a": 1, "b": 1}', "distinct"),
        ('{"a": 0}', "expected"),
        ('{"a": 255}', "expected"),
        ('{"a": true}', "expected"),
    ],
)
def test_bad_classes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path / "classes.json")


def test_bad_masks_are_refused(root: Path, draw_picture: Callable[..., Path]) -> None:
    path = root / "masks" / "both.png"
    draw_picture(path, (3, 3, 3), (40, 20))
    with pytest.raises(ValueError, match=r"expected one byte per pixel .* got mode RGB"):
        SketchSegmentation(root, 16, progress=False)
    draw_picture(path, 4, (40, 20), "L")
    with pytest.raises(ValueError, match=r"both\.png holds the values \[4\]"):
        SketchSegmentation(root, 16, progress=False)
    draw_picture(path, 3, (20, 40), "L")
    data = SketchSegmentation(root, 16, progress=False)
    with pytest.raises(ValueError, match=r"both\.png is 20 x 40, expected 40 x 20"):
        data[len(data) - 1]


@pytest.mark.parametrize(("depth", "row"), [(2, 0b00_11_11_00), (4, 0x03), (8, 0)])
def test_masks_of_few_bits_hold_what_they_say(depth: int, row: int, write_png: Any) -> None:
    expected = {2: [0, 3, 3, 0], 4: [0, 3], 8: [0]}[depth]
    mask = read_mask(write_png(bytes([row]), width=len(expected), depth=depth), {"cat": 3})
    assert mask.dtype == np.uint8 and mask.tolist() == [expected]


def test_palettes_are_indices(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 3)
    image.putpalette([0, 0, 0] * 3 + [250, 10, 10])
    image.save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png", {"cat": 3}) == 3).all()
