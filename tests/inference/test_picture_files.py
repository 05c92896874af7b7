"""Finding, reading and writing picture files."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sketchfusion_plugins.images import open_image, to_tensor
from sketchfusion_plugins.inference import picture_files
from sketchfusion_plugins.inference.picture_files import (
    check_png,
    check_targets,
    list_pictures,
    read_batches,
    write_png,
)
from sketchfusion_plugins.problems import Problems


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.PNG", "a.jpg", "deep/er/c.webp", ".hidden/d.png", ".e.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def test_folders_are_searched_and_sorted(folder: Path) -> None:
    expected = [folder / name for name in ("a.jpg", "b.PNG", "deep/er/c.webp")]
    assert list_pictures([folder]) == expected
    # Named outright, once: any suffix, also what is not there.
    named = [folder / "notes.txt", folder / "b.PNG", folder / "none.png"]
    assert list_pictures([*named, folder, str(folder)]) == [*named, expected[0], expected[2]]


def test_links_to_folders_are_followed_once(folder: Path, tmp_path_factory: Any) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "more").mkdir()
    for name in ("x.png", "more/y.png"):
        (outside / name).write_bytes(b"")
    expected = list_pictures([folder])
    # Pictures that need no link keep their names.
    (folder / "a-link-to-deep").symlink_to(folder / "deep", target_is_directory=True)
    (folder / "deep" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / ".hidden-link").symlink_to(outside, target_is_directory=True)
    assert list_pictures([folder]) == expected
    for name in ("linked", "linked-again", "deep/linked"):
        (folder / name).symlink_to(outside, target_is_directory=True)
    (outside / "back").symlink_to(folder, target_is_directory=True)
    (outside / "more" / "loop").symlink_to(outside, target_is_directory=True)
    added = [folder / "deep/linked" / name for name in ("more/y.png", "x.png")]
    assert list_pictures([folder]) == sorted([*expected, *added])
    # Also from within: what lies above comes by the link.
    found = list_pictures([outside])
    assert found[-2:] == [outside / "more/y.png", outside / "x.png"]
    assert found[:-2] == [outside / "back" / path.relative_to(folder) for path in expected]


def test_what_cannot_be_looked_into_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "locked").mkdir()
    look = os.scandir

    def refuse(path: Any = ".") -> Any:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    os.mkfifo(folder / "pipe.png")
    problems = Problems()
    expected = [folder / name for name in ("a.jpg", "b.PNG", "deep/er/c.webp", "gone.png")]
    assert list_pictures([folder], problems) == expected
    assert len(problems.found) == 1 and str(folder / "locked") in problems.found[0]
    with pytest.raises(PermissionError, match="locked"):
        list_pictures([folder])
    with pytest.raises(PermissionError, match="locked"):
        list_pictures([folder / "locked"], problems)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no picture; looked for \.bmp"):
        list_pictures([tmp_path])
    with pytest.raises(FileNotFoundError, match="no picture was named"):
        list_pictures([])


def _write(folder: Path) -> list[Path]:
    Image.new("RGBA", (20, 10), (255, 0, 0, 128)).save(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:50])
    (folder / "c.jpg").write_text("no picture")
    Image.new("L", (9, 30), 7).save(folder / "d.gif")
    return [folder / name for name in ("a.png", "b.png", "c.jpg", "d.gif", "e.png")]


def test_bad_files_are_told_apart(tmp_path: Path) -> None:
    paths = _write(tmp_path)
    problems = Problems()
    ((readable, images),) = read_batches(paths, 48, problems, 5, "reading")
    assert readable == [paths[0], paths[3]]
    assert images.shape == (2, 3, 48, 48)
    np.testing.assert_array_equal(images[1], to_tensor(open_image(paths[3]), 48))
    assert len(problems.found) == 3
    for path, line in zip((paths[1], paths[2], paths[4]), problems.found, strict=True):
        assert line.count(str(path)) == 1
    assert list(read_batches(paths[1:3], 48, Problems(), 5, "reading")) == []


def test_batches_keep_order_whatever_reading_takes(tmp_path: Path) -> None:
    paths = []
    for number, side in enumerate((900, 8, 500, 8, 8, 700, 8)):
        path = tmp_path / f"{number}.png"
        Image.effect_noise((side, side), 40 + number).save(path)
        paths.append(path)
    paths.insert(3, tmp_path / "none.png")
    problems = Problems()
    batches = list(read_batches(paths, 48, problems, 3, "reading"))
    assert [readable for readable, _ in batches] == [paths[:3], paths[4:6], paths[6:]]
    for readable, images in batches:
        for path, image in zip(readable, images, strict=True):
            assert torch.equal(image, to_tensor(open_image(path), 48))
    assert len(problems.found) == 1 and "none.png" in problems.found[0]


def test_no_more_is_read_than_the_next_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(10)]
    for path in paths:
        Image.new("L", (8, 8)).save(path)
    opened = []

    def note(path: Path) -> Image.Image:
        opened.append(path)
        return open_image(path)

    monkeypatch.setattr(picture_files, "open_image", note)
    batches = read_batches(paths, 48, Problems(), 2, "reading")
    next(batches)
    batches.close()
    assert set(paths[:2]) <= set(opened) <= set(paths[:4])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(read_batches(paths, 48, Problems(), 0, "reading"))


def test_strict_stops_at_the_first(tmp_path: Path) -> None:
    paths = _write(tmp_path)
    with pytest.raises(OSError, match=r"b\.png"):
        list(read_batches(paths, 48, Problems(strict=True), 5, "reading"))


def test_decompression_bombs_are_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = _write(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    problems = Problems()
    assert list(read_batches(paths[:1], 48, problems, 5, "reading")) == []
    assert "a.png: " in problems.found[0]


def test_written_pictures(tmp_path: Path) -> None:
    pixels = np.arange(30, dtype=np.uint8).reshape(5, 6)
    write_png(pixels, tmp_path / "made" / "mask.png")
    with Image.open(tmp_path / "made" / "mask.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["mask.png"]
    with pytest.raises(ValueError, match=r"'mask\.jpg', expected a name that ends in \.png"):
        write_png(pixels, tmp_path / "mask.jpg")
    check_png(None)


def test_targets_that_are_one_file(tmp_path: Path) -> None:
    photo, other, new = (tmp_path / name for name in ("photo.png", "other.png", "new.png"))
    photo.touch()
    check_targets([new, None, other], [photo])
    # As on file systems that do not tell capitals from small letters.
    other.hardlink_to(photo)
    with pytest.raises(ValueError, match=r"other\.png would replace .*photo\.png, which is read"):
        check_targets([new, other], [photo])
    with pytest.raises(ValueError, match=r"would replace .*new\.png, which is written too"):
        check_targets([new, tmp_path / "." / "new.png"], [photo])
