"""Images at the door, by the pixels that come out."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sketchfusion_plugins.images import (
    check_image,
    flatten_image,
    open_image,
    pad_to_multiple,
    to_rgb,
    to_tensor,
)

WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)


def _pixels(image: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(int(value) for value in pixel) for pixel in np.asarray(image).reshape(-1, 3)]


def _two(mode: str, first: Any, second: Any) -> Image.Image:
    image = Image.new(mode, (2, 1))
    image.putpixel((0, 0), first)
    image.putpixel((1, 0), second)
    return image


def _palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    image.putpixel((1, 0), 1)
    return image


def _sixteen_bits() -> Image.Image:
    return Image.fromarray(np.array([[65535, 257 * 100]], dtype=np.uint16))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (_two("RGB", RED, BLACK), [RED, BLACK]),
        (_two("L", 255, 7), [WHITE, (7, 7, 7)]),
        (_two("1", 1, 0), [WHITE, BLACK]),
        (_palette(), [RED, (10, 20, 30)]),
        # Transparency shows white paper, whatever colour lies under it.
        (_two("RGBA", (0, 0, 0, 0), (255, 0, 0, 255)), [WHITE, RED]),
        (_two("LA", (0, 0), (0, 255)), [WHITE, BLACK]),
        (_two("RGBA", (0, 0, 0, 51), (0, 0, 0, 204)), [(204, 204, 204), (51, 51, 51)]),
        (_two("CMYK", (0, 0, 0, 0), (0, 255, 255, 0)), [WHITE, RED]),
        (_sixteen_bits(), [WHITE, (100, 100, 100)]),
    ],
)
def test_every_mode_becomes_rgb_on_white(
    image: Image.Image, expected: list[tuple[int, int, int]], tmp_path: Path
) -> None:
    flat = flatten_image(image)
    assert flat.mode == "RGB"
    assert _pixels(flat) == expected
    path = tmp_path / ("image.tif" if image.mode == "CMYK" else "image.png")
    image.save(path)
    assert _pixels(open_image(path)) == expected


@pytest.mark.parametrize(
    ("image", "transparent"),
    [(_palette(), 0), (_two("L", 9, 7), 9), (_two("RGB", (1, 2, 3), BLACK), (1, 2, 3))],
)
def test_transparent_colour_of_a_png(image: Image.Image, transparent: Any, tmp_path: Path) -> None:
    image.save(tmp_path / "image.png", transparency=transparent)
    first, second = _pixels(open_image(tmp_path / "image.png"))
    assert first == WHITE
    assert second == _pixels(image.convert("RGB"))[1]


def test_transparent_grey_of_16_bits(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[7, 257 * 100]], dtype=np.uint16))
    grey.save(tmp_path / "image.png", transparency=7)
    assert _pixels(open_image(tmp_path / "image.png")) == [WHITE, (100, 100, 100)]


def test_a_photo_is_read_as_small_as_suffices(tmp_path: Path) -> None:
    photo = Image.new("RGB", (800, 480), (40, 90, 160))
    for name in ("photo.jpg", "photo.png"):
        photo.save(tmp_path / name)
    # A quarter has 200 x 120 pixels, an eighth no more than 60 in height.
    assert open_image(tmp_path / "photo.jpg", enough=100).size == (200, 120)
    assert open_image(tmp_path / "photo.jpg", enough=481).size == (800, 480)
    assert open_image(tmp_path / "photo.jpg").size == (800, 480)
    assert open_image(tmp_path / "photo.png", enough=100).size == (800, 480)


@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    # Where the red pixel of the top left corner goes, by the EXIF standard.
    [(1, (3, 2), (0, 0)), (3, (3, 2), (2, 1)), (6, (2, 3), (1, 0)), (8, (2, 3), (0, 2))],
)
def test_exif_rotation(
    orientation: int, size: tuple[int, int], corner: tuple[int, int], tmp_path: Path
) -> None:
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "image.png", exif=exif)
    opened = open_image(tmp_path / "image.png")
    assert opened.size == size
    assert opened.getpixel(corner) == RED


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", ["L", "P", "I;16", "RGB", "RGBA"])
@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_scans_that_are_to_be_turned(
    orientation: int, turn: int, mode: str, compression: str | None, tmp_path: Path
) -> None:
    values = (np.arange(30 * 40) % 251).reshape(30, 40)
    grey = values.astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray((values * 257).astype(np.uint16))
    else:
        image = Image.fromarray(grey)
        if mode == "P":
            image.putpalette([value for level in range(256) for value in [level] * 3])
        else:
            image = image.convert(mode)
    assert image.mode == mode
    path = tmp_path / "scan.tif"
    image.save(path, compression=compression, tiffinfo={274: orientation})
    np.testing.assert_array_equal(np.asarray(open_image(path))[..., 0], np.rot90(grey, turn))


def test_one_grey_may_stand_for_none_at_any_depth(write_png: Any) -> None:
    path = write_png(bytes([0x01, 0x1F]), width=4, depth=4, clear=[1])
    assert [pixel[0] for pixel in _pixels(open_image(path))] == [0, 255, 255, 255]
    path = write_png(bytes([0b00_01_10_11]), width=4, depth=2, clear=[1])
    assert [pixel[0] for pixel in _pixels(open_image(path))] == [0, 255, 170, 255]
    with Image.open(path) as image:
        assert flatten_image(image).tobytes() == flatten_image(image).tobytes()
    colours = struct.pack(">6H", 300, 300, 300, 0, 65535, 0)
    path = write_png(colours, width=2, depth=16, kind=2, clear=[300, 300, 300])
    assert _pixels(open_image(path)) == [WHITE, (0, 255, 0)]


def test_padding_is_compiled_for_sizes_that_vary() -> None:
    def grid(image: torch.Tensor) -> torch.Tensor:
        # As in the encoder, sizes of what follows are counted from the padded one.
        padded = pad_to_multiple(image, 8)
        sides = (padded.shape[-2] // 4, padded.shape[-1] // 4)
        return F.interpolate(F.avg_pool2d(padded, 8), sides)

    torch._dynamo.reset()
    compiled = torch.compile(grid, backend="aot_eager", dynamic=True)
    for size in ((40, 56), (72, 33)):
        image = torch.rand(1, 3, *size)
        assert torch.equal(compiled(image), grid(image))
    torch._dynamo.reset()


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_rotation_is_applied_once(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (30, 20), "white").save(path, exif=exif, xmp=xmp)
    image = open_image(path)
    assert image.size == ((30, 20) if orientation == 1 else (20, 30))
    assert flatten_image(image).size == image.size
    assert to_tensor(image).shape[-2:] == image.size[::-1]


def test_original_is_not_changed() -> None:
    image = _two("RGBA", (0, 0, 0, 0), (255, 0, 0, 255))
    before = image.tobytes()
    flatten_image(image)
    to_tensor(image, 8)
    assert (image.mode, image.tobytes()) == ("RGBA", before)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        open_image(tmp_path / "missing.png")
    path = tmp_path / "text.png"
    path.write_text("no image")
    with pytest.raises(OSError, match=r"text\.png is not an image"):
        open_image(path)
    image = tmp_path / "half.png"
    Image.effect_noise((64, 64), 50).save(image)
    image.write_bytes(image.read_bytes()[:1000])
    with pytest.raises(OSError):
        open_image(image)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of Unix")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(OSError, match=r"pipe\.png is a pipe or a device, expected a file"):
        open_image(tmp_path / "pipe.png")


def test_tensor_values() -> None:
    tensor = to_tensor(_two("RGB", (0, 255, 51), (127, 128, 204)))
    assert tensor.dtype == torch.float32
    assert tensor.shape == (3, 1, 2)
    expected = torch.tensor([[[0, 127]], [[255, 128]], [[51, 204]]]) / 255 * 2 - 1
    torch.testing.assert_close(tensor, expected)


def test_padding_keeps_the_aspect_on_white() -> None:
    tensor = to_tensor(Image.new("L", (20, 10), 0), 40)
    assert tensor.shape == (3, 40, 40)
    assert (tensor[:, 10:30] == -1).all()
    assert (tensor[:, :10] == 1).all()
    assert (tensor[:, 30:] == 1).all()


def test_stretching_fills_the_frame() -> None:
    tensor = to_tensor(Image.new("L", (20, 10), 0), (24, 40), fit="stretch")
    assert tensor.shape == (3, 24, 40)
    assert (tensor == -1).all()


def test_size_is_height_and_width() -> None:
    assert to_tensor(Image.new("L", (5, 7)), (16, 32)).shape == (3, 16, 32)
    assert to_tensor(Image.new("L", (5, 7))).shape == (3, 7, 5)


def test_unknown_fit() -> None:
    with pytest.raises(ValueError, match="'pad' or 'stretch', got 'crop'"):
        to_tensor(Image.new("L", (5, 7)), 8, fit="crop")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "error", "named"),
    [
        (np.zeros((1, 3, 64, 64)), TypeError, r"\[B, 3, H, W\], got ndarray.*to_tensor"),
        (Image.new("L", (64, 64)), TypeError, "got Image"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "torch.uint8.*127.5"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), TypeError, "torch.int64"),
        (torch.zeros(3, 64, 64), ValueError, r"got 3 dimensions \[3, 64, 64\].*image\[None\]"),
        (torch.zeros(1, 1, 3, 64, 64), ValueError, "got 5 dimensions"),
        (torch.zeros(1, 4, 64, 64), ValueError, r"expected 3 channel\(s\), got 4"),
        (torch.zeros(1, 64, 64, 3), ValueError, r"expected 3 channel\(s\), got 64"),
        (torch.zeros(0, 3, 64, 64), ValueError, "at least one image"),
        (torch.zeros(1, 3, 31, 64), ValueError, "at least 32 px, got 31 x 64"),
        (torch.zeros(1, 3, 64, 1), ValueError, "at least 32 px, got 64 x 1"),
        (torch.full((1, 3, 64, 64), 255.0), ValueError, r"-1\.\.1, got .*255.*0\.\.255"),
        (torch.full((1, 3, 64, 64), torch.nan), ValueError, "NaN"),
        (torch.full((1, 3, 64, 64), torch.inf), ValueError, r"-1\.\.1, got .*inf"),
        (torch.full((1, 3, 64, 64), -torch.inf), ValueError, r"-1\.\.1, got .*inf"),
    ],
)
def test_refusals(image: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        check_image(image, 3)


def test_one_nan_among_many() -> None:
    image = torch.zeros(2, 3, 64, 64)
    image[1, 2, 63, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        check_image(image, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_accepted(dtype: torch.dtype) -> None:
    check_image(torch.randn(2, 3, 32, 32).to(dtype), 3)
    check_image(torch.empty(2, 3, 32, 32, dtype=dtype, device="meta"), 3)


def test_grey_is_repeated() -> None:
    grey = torch.rand(2, 1, 4, 5)
    assert torch.equal(to_rgb(grey), torch.cat([grey] * 3, 1))


def test_rgb_is_passed_on() -> None:
    image = torch.rand(2, 3, 4, 5)
    assert to_rgb(image) is image


def test_alpha_composites_on_white() -> None:
    image = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1)
    for alpha, expected in (
        (-1.0, [1.0, 1.0, 1.0]),  # transparent
        (1.0, [-1.0, 0.0, 1.0]),  # opaque
        (0.0, [0.0, 0.5, 1.0]),  # half of each
    ):
        rgba = torch.cat([image, torch.full((1, 1, 1, 1), alpha)], 1)
        assert to_rgb(rgba).flatten().tolist() == expected


@pytest.mark.parametrize(
    ("size", "expected"), [((8, 16), (8, 16)), ((33, 57), (40, 64)), ((40, 57), (40, 64))]
)
def test_padding_repeats_the_border(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size)
    padded = pad_to_multiple(image, 8)
    assert padded.shape[-2:] == expected
    height, width = size
    assert torch.equal(padded[..., :height, :width], image)
    rows = torch.arange(expected[0]).clamp(max=height - 1)
    columns = torch.arange(expected[1]).clamp(max=width - 1)
    assert torch.equal(padded, image[..., rows, :][..., columns])
