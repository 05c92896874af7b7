"""A miniature of TU-Berlin and its extended photos."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sketchfusion_plugins.data.pictures import PictureDataset
from sketchfusion_plugins.data.tuberlin import load_tuberlin
from sketchfusion_plugins.images import to_tensor

NAMES = ("alarm clock/81.png", "mouse (animal)/1.png", "t-shirt/3.png")


@pytest.fixture
def root(tmp_path: Path, draw_picture: Callable[..., Path]) -> Path:
    for name in NAMES:
        draw_picture(tmp_path / "png" / name, 255, mode="L")
    draw_picture(tmp_path / "ImageResized" / "t-shirt" / "a.JPEG")
    return tmp_path


def test_load(root: Path, same_in_workers: Callable[..., list[Any]]) -> None:
    sketches, photos = load_tuberlin(root, root / "ImageResized")
    assert [s.category for s in sketches] == ["alarm clock", "mouse (animal)", "t-shirt"]
    assert [p.category for p in photos] == ["t-shirt"]
    assert all(p.instance is None for p in (*sketches, *photos))
    assert load_tuberlin(root / "png") == (sketches, [])
    data = PictureDataset(sketches, transform=partial(to_tensor, size=16))
    (batch, _) = same_in_workers(data)
    assert batch["image"].shape == (2, 3, 16, 16) and batch["instance"].tolist() == [-1, -1]


def test_the_list_orders_and_checks(root: Path) -> None:
    listed = root / "png" / "filelist.txt"
    listed.write_text("\n".join(NAMES[::-1]))
    assert [s.category for s in load_tuberlin(root)[0]] == [n.split("/")[0] for n in NAMES[::-1]]
    listed.write_text("\n".join((*NAMES, "ant/7.png")))
    with pytest.raises(FileNotFoundError, match=r"ant/7\.png is missing, named by .*filelist\.txt"):
        load_tuberlin(root)


def test_missing_folders_say_how_to_get_them(tmp_path: Path, root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing.*sketches_png\.zip"):
        load_tuberlin(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing.*ImageResized"):
        load_tuberlin(root, tmp_path / "nowhere")
