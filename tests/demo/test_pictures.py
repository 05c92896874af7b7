"""Pictures from a browser: what is read, and what is refused in which words."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sketchfusion_plugins.demo.pictures import (
    CANVAS,
    LONGEST_CANVAS,
    LONGEST_SIDE,
    PREFIX,
    Box,
    PictureError,
    decode_canvas,
    encode_canvas,
    find_ink,
    read_upload,
)


def _url(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return PREFIX + base64.b64encode(buffer.getvalue()).decode()


def _header_of_a_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0"))


def test_a_canvas_comes_back_as_it_was_sent() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (CANVAS, CANVAS, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_canvas(_url(Image.fromarray(pixels))), pixels)
    sent = encode_canvas(Image.fromarray(pixels))
    np.testing.assert_array_equal(decode_canvas(sent), pixels)


def test_what_is_put_on_the_canvas_is_centred_on_white() -> None:
    found = np.asarray(decode_canvas(encode_canvas(Image.new("RGB", (20, 40), "black"))))
    quarter = CANVAS // 4
    assert found.shape == (CANVAS, CANVAS, 3)
    assert (found[:, : quarter - 2] == 255).all()
    assert (found[:, quarter + 2 : -quarter - 2] == 0).all()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "did not arrive"),
        (3, "did not arrive"),
        ("", "did not arrive"),
        ("data:image/svg+xml;base64,AAAA", "did not arrive"),
        (PREFIX + "A" * LONGEST_CANVAS, "did not arrive"),
        (PREFIX + "*", "damaged"),
        (PREFIX + "AAAA", "damaged"),
        (PREFIX + base64.b64encode(_header_of_a_bomb(60_000, 60_000)).decode(), "damaged"),
        (PREFIX + base64.b64encode(_header_of_a_bomb(64, 64)).decode(), "damaged"),
        (_url(Image.new("RGB", (64, 64)), "JPEG"), "damaged"),
        (_url(Image.new("RGB", (CANVAS, CANVAS + 1))), "damaged"),
    ],
)
def test_what_is_no_canvas_is_refused(data: object, words: str) -> None:
    with pytest.raises(PictureError, match=words):
        decode_canvas(data)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no picture"),
        (b"hello", "no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture"),
        (_header_of_a_bomb(20_000, 20_000), "too many pixels|at most"),
        (_header_of_a_bomb(8_000, 8_000), "8000 x 8000 pixels; at most 50 million"),
        (_header_of_a_bomb(64, 64), "damaged"),
    ],
)
def test_uploads_that_are_no_pictures_are_refused(
    content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "upload.png"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=words):
        read_upload(path)


def test_no_other_program_is_started_for_an_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {started}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    (tmp_path / "upload.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(PictureError, match="no picture"):
        read_upload(tmp_path / "upload.png")
    assert not started.exists()


def test_an_upload_is_shrunk_flattened_and_upright(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (2000, 500), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    found = read_upload(tmp_path / "clear.png")
    assert (found.size, found.getpixel((9, 9))) == ((LONGEST_SIDE, LONGEST_SIDE // 4), (255,) * 3)
    turned = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_upload(tmp_path / "turned.jpg").size == (20, 40)
    Image.new("RGB", (500, 3)).save(tmp_path / "thin.png")
    with pytest.raises(PictureError, match="500 x 3 pixels"):
        read_upload(tmp_path / "thin.png")
    with pytest.raises(PictureError, match=r"^This picture is no longer where it was\.$"):
        read_upload(tmp_path / "deleted.png")


def test_ink_is_framed_wherever_it_is() -> None:
    sketch = Image.new("RGB", (CANVAS, CANVAS), "white")
    ImageDraw.Draw(sketch).rectangle((300, 40, 379, 79), outline="black", width=3)
    # 80 px wide, a quarter more around: 100 px; 10 px to the left, 30 px above the 40 px of height.
    assert find_ink(sketch) == Box(290, 10, 100)
    cut = np.asarray(find_ink(sketch).crop(sketch))
    assert cut.shape == (100, 100, 3)
    assert (cut[30, 10:90] == 0).all()
    assert (cut[:, :10] == 255).all()
    assert (cut[:, 90:] == 255).all()


def test_a_box_knows_what_it_holds() -> None:
    box = Box(-5, 10, 20)
    assert box.holds(-5, 10)
    assert box.holds(15, 30)
    assert not box.holds(15.1, 20)
    assert not box.holds(0, 9.9)


@pytest.mark.parametrize(
    ("corner", "words"),
    [
        (None, "Nothing is drawn yet"),
        ((200, 200, 208, 208), "a dot so far"),
        ((0, 0, CANVAS, CANVAS), "Hardly any paper"),
    ],
)
def test_what_is_no_drawing_is_said_so(corner: tuple[int, ...] | None, words: str) -> None:
    sketch = Image.new("RGB", (CANVAS, CANVAS), "white")
    if corner is not None:
        ImageDraw.Draw(sketch).rectangle(corner, fill="black")
    with pytest.raises(PictureError, match=words):
        find_ink(sketch)
