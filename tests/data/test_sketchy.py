"""A miniature of Sketchy: both modalities, instances, extended photos, lists, zero-shot splits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sketchfusion_plugins.data.pictures import PictureDataset, of_categories
from sketchfusion_plugins.data.sketchy import load_sketchy, load_sketchy_list, photo_of_sketch
from sketchfusion_plugins.data.zero_shot import split_categories, unseen_classes
from sketchfusion_plugins.images import to_tensor

CATEGORIES = ("jack-o-lantern", "cat", *sorted(set(unseen_classes("sketchy_25"))))


@pytest.fixture
def root(tmp_path: Path, draw_picture: Callable[..., Path]) -> Path:
    base = tmp_path / "256x256"
    for name in CATEGORIES:
        if name == "jack_o_lantern":
            continue
        for photo in ("n01_7", "n02_8"):
            draw_picture(base / "photo" / "tx_000000000000" / name / f"{photo}.jpg")
            for number in (1, 2):
                draw_picture(
                    base / "sketch" / "tx_000000000000" / name / f"{photo}-{number}.png", "white"
                )
    # As published, with Sketchy's own photos once more.
    for photo in ("ext_1", "n01_7", "n02_8"):
        draw_picture(tmp_path / "EXTEND" / "cat" / f"{photo}.jpg")
    return tmp_path


def test_load(root: Path, same_in_workers: Callable[..., list[Any]]) -> None:
    sketches, photos = load_sketchy(root, extended=root / "EXTEND")
    assert len(sketches) == 26 * 4 and len(photos) == 26 * 2 + 1
    assert photos[-1].instance is None and photos[-1].path.name == "ext_1.jpg"
    assert load_sketchy(root / "256x256") == (sketches, photos[:-1])
    resize = partial(to_tensor, size=16)
    categories = sorted({photo.category for photo in photos})
    queries = PictureDataset(sketches, categories, resize, root)
    gallery = PictureDataset(photos, categories, resize, root)
    # Every sketch has exactly one photo, of its own category, in the whole gallery.
    matches = queries.instances[:, None] == gallery.instances
    assert (matches.sum(1) == 1).all()
    assert torch.equal(gallery.labels[matches.int().argmax(1)], queries.labels)
    first = same_in_workers(queries, batch_size=50)[0]
    assert first["image"].shape == (50, 3, 16, 16)
    assert first["key"][0] == "256x256/sketch/tx_000000000000/bear/n01_7-1.png"


def test_zero_shot(root: Path) -> None:
    sketches, _ = load_sketchy(root)
    seen, unseen = split_categories([s.category for s in sketches], "sketchy_25")
    assert seen == ["cat"] and len(unseen) == 25 and "jack-o-lantern" in unseen
    assert len(of_categories(sketches, unseen)) == 100


def test_lists(root: Path) -> None:
    listed = root / "list.txt"
    listed.write_text("256x256/sketch/tx_000000000000/cat/n02_8-2.png 4\n")
    (sketch,) = load_sketchy_list(listed, root, sketches=True)
    assert (sketch.category, sketch.instance) == ("cat", "n02_8")
    listed.write_text("256x256/photo/tx_000000000000/cat/n02_8.jpg 4\n")
    (photo,) = load_sketchy_list(listed, root, sketches=False)
    assert (photo.category, photo.instance) == ("cat", "n02_8")


@pytest.mark.parametrize("name", ["n01_7.png", "n01_7-.png", "-1.png", "n01-a.png"])
def test_misnamed_sketches_are_refused(root: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"expected a sketch named <photo>-<number>\.png"):
        photo_of_sketch(root / name)


def test_missing_folders_say_how_to_get_them(tmp_path: Path, root: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"tx_000000000000 is missing.*sketchy\.eye\.gatech"
    ):
        load_sketchy(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"tx_000100000000 is missing"):
        load_sketchy(root, augmentation="tx_000100000000")
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing.*Liu et al"):
        load_sketchy(root, extended=tmp_path / "nowhere")
