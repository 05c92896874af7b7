"""A miniature of QuickDraw-Extended."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sketchfusion_plugins.data.pictures import PictureDataset
from sketchfusion_plugins.data.quickdraw_extended import load_quickdraw_extended
from sketchfusion_plugins.data.zero_shot import split_categories, unseen_classes
from sketchfusion_plugins.images import to_tensor


@pytest.fixture
def root(tmp_path: Path, draw_picture: Callable[..., Path]) -> Path:
    for name in (*unseen_classes("quickdraw_30"), "ant"):
        draw_picture(tmp_path / "QuickDraw_sketches_final" / name / "1.png", "white")
        draw_picture(tmp_path / "QuickDraw_images_final" / name / "2.jpg")
    return tmp_path


def test_load(root: Path, same_in_workers: Callable[..., list[Any]]) -> None:
    sketches, photos = load_quickdraw_extended(root)
    assert [s.category for s in sketches] == [p.category for p in photos]
    assert {s.path.suffix for s in sketches} == {".png"}
    seen, unseen = split_categories({s.category for s in sketches}, "quickdraw_30")
    assert seen == ["ant"] and sorted(unseen) == list(unseen_classes("quickdraw_30"))
    data = PictureDataset(photos[:3], transform=partial(to_tensor, size=16))
    assert same_in_workers(data)[1]["image"].shape == (1, 3, 16, 16)


@pytest.mark.parametrize("folder", ["QuickDraw_sketches_final", "QuickDraw_images_final"])
def test_missing_folders_say_how_to_get_them(root: Path, folder: str) -> None:
    (root / folder).rename(root / "other")
    with pytest.raises(FileNotFoundError, match=rf"{folder} is missing.*{folder}\.zip"):
        load_quickdraw_extended(root)
