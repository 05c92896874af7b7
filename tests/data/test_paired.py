"""Paired folders: sketches find their photos by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sketchfusion_plugins.data.paired import load_paired
from sketchfusion_plugins.data.pictures import PictureDataset
from sketchfusion_plugins.images import to_tensor


@pytest.fixture
def root(tmp_path: Path, draw_picture: Callable[..., Path]) -> Path:
    for name in ("cat/tom.jpg", "cat/tom-2.jpg", "dog/rex.png"):
        draw_picture(tmp_path / "photos" / name)
    for name in ("cat/tom.png", "cat/tom-1.png", "cat/tom-2.png", "dog/rex-12.png", "dog/tom.png"):
        draw_picture(tmp_path / "sketches" / name, "white")
    return tmp_path


def test_sketches_find_their_photos(root: Path, same_in_workers: Callable[..., list[Any]]) -> None:
    sketches, photos = load_paired(root)
    assert {f"{s.category}/{s.path.name}": s.instance for s in sketches} == {
        "cat/tom.png": "tom",
        "cat/tom-1.png": "tom",
        "cat/tom-2.png": "tom-2",
        "dog/rex-12.png": "rex",
        "dog/tom.png": None,
    }
    assert [p.instance for p in photos] == ["tom-2", "tom", "rex"]
    queries = PictureDataset(sketches, transform=partial(to_tensor, size=16))
    gallery = PictureDataset(photos)
    assert (queries.instances[:, None] == gallery.instances).sum(1).tolist() == [1, 1, 1, 1, 0]
    assert len(same_in_workers(queries)) == 3


def test_bad_folders_are_refused(root: Path, draw_picture: Callable[..., Path]) -> None:
    with pytest.raises(FileNotFoundError, match=r"photos is missing.*photos/<category>"):
        load_paired(root / "nowhere")
    draw_picture(root / "sketches" / "owl" / "a.png")
    with pytest.raises(ValueError, match="has no photo of owl"):
        load_paired(root)
    draw_picture(root / "photos" / "owl" / "a.png")
    draw_picture(root / "photos" / "owl" / "a.jpg")
    with pytest.raises(ValueError, match="another photo of owl has the same stem"):
        load_paired(root)
