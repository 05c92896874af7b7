"""Bad pictures: each is an OSError that names the file, and a job goes on without it."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sketchfusion_plugins.data.segmentation_pairs import read_mask
from sketchfusion_plugins.images import FORMATS, flatten_image, open_image, to_tensor
from sketchfusion_plugins.inference.picture_files import read_batches
from sketchfusion_plugins.problems import Problems

NOISE = Image.effect_noise((23, 17), 60)
EXIF = Image.Exif()
EXIF[0x0112] = 6


def _encoded() -> list[bytes]:
    """Small pictures of every format and mode that Pillow writes."""
    found = []
    for kind in FORMATS:
        for mode in ("RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16"):
            file = io.BytesIO()
            try:
                NOISE.convert(mode).save(file, kind, exif=EXIF)
            except (OSError, ValueError):
                continue
            found.append(file.getvalue())
    return found


ENCODED = _encoded()


def _png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _saved(kind: str, image: Image.Image = NOISE, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _floats() -> bytes:
    return _saved("TIFF", Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)))


BAD: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"no picture",
    "signature alone": lambda: b"\x89PNG\r\n\x1a\n",
    "truncated png": lambda: _saved("PNG")[:-60],
    "truncated jpeg": lambda: _saved("JPEG")[:300],
    "truncated webp": lambda: _saved("WEBP")[:60],
    "bomb": lambda: _png(20_000, 20_000),
    "no pixels": lambda: _png(0, 5),
    # Pillow would start Ghostscript for it.
    "postscript": lambda: _saved("EPS", NOISE.convert("RGB")),
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "pickle": lambda: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "floating point": _floats,
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_one_error_that_names_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(BAD[name]())
    with pytest.raises(OSError, match=r"bad\.png"):
        open_image(path)
    problems = Problems()
    good = tmp_path / "good.png"
    good.write_bytes(_saved("PNG"))
    ((readable, images),) = read_batches([path, good], 32, problems, 2, "reading")
    assert readable == [good]
    assert images.shape == (1, 3, 32, 32)
    assert len(problems.found) == 1 and str(path) in problems.found[0]


@given(
    data=st.sampled_from(ENCODED),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=12),
    kept=st.floats(0, 1),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_damaged_files_raise_nothing_but_oserror(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    changes: list[tuple[int, int]],
    kept: float,
) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % min(len(damaged), 120)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(damaged[: round(kept * len(damaged))] if kept < 0.5 else damaged)
    try:
        image = open_image(path)
        to_tensor(image)
    except OSError as error:
        assert str(path) in str(error)
    else:
        assert image.mode == "RGB"
    try:
        read_mask(path, {})
    except ValueError as error:
        assert str(path) in str(error)


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path: Path) -> None:
    generator = random.Random(0)
    path = tmp_path / "damaged.png"
    read = 0
    for _ in range(10_000):
        data = bytearray(generator.choice(ENCODED))
        for _ in range(generator.choice([1, 1, 2, 8, 40])):
            data[generator.randrange(min(len(data), generator.choice([40, 100, 5000])))] = (
                generator.randrange(256)
            )
        path.write_bytes(data[: generator.randrange(len(data))] if len(data) % 3 else data)
        try:
            # A side of hundreds of thousands is within Pillow's limit if the other is short.
            assert open_image(path).mode == "RGB"
        except OSError as error:
            assert str(path) in str(error)
        else:
            read += 1
    assert 100 < read < 9_900


@pytest.mark.parametrize("kind", FORMATS)
def test_wrong_suffix_does_not_matter(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.xyz"
    path.write_bytes(_saved(kind, NOISE.convert("RGB")))
    assert open_image(path).size == NOISE.size


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind, difference in (("GIF", 0), ("PNG", 0), ("WEBP", 3)):
        path = tmp_path / kind
        options = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(path, kind, save_all=True, append_images=frames[1:], **options)
        got = np.asarray(open_image(path)).astype(int)
        assert abs(got - [255, 0, 0]).max() <= difference


def test_damaged_exif_tells_no_rotation(tmp_path: Path) -> None:
    whole = _saved("JPEG", exif=EXIF)
    (tmp_path / "a.jpg").write_bytes(whole)
    assert to_tensor(open_image(tmp_path / "a.jpg")).shape == (3, 23, 17)
    (tmp_path / "a.jpg").write_bytes(whole.replace(b"MM\x00*", b"MM\x00\xd9", 1))
    assert to_tensor(open_image(tmp_path / "a.jpg")).shape == (3, 17, 23)


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("LA", (1, 1), (0, 255)).save(tmp_path / "dot.png")
    assert (to_tensor(open_image(tmp_path / "dot.png"), 32) == -1).all()


def test_a_picture_that_padding_would_erase_is_refused() -> None:
    with pytest.raises(ValueError, match="20000 x 1 px vanishes in 32 x 32"):
        to_tensor(Image.new("L", (20_000, 1)), 32)
    assert to_tensor(Image.new("L", (63, 1)), 32).min() == -1


@pytest.mark.parametrize(("values", "named"), [([70_000, 0], "0 to 70000"), ([5, -1], "-1 to 5")])
def test_more_than_sixteen_bits_are_refused(values: list[int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        flatten_image(Image.fromarray(np.array([values], dtype=np.int32)))


def test_premultiplied_alpha() -> None:
    clear = Image.new("La", (1, 1), (0, 0))
    assert flatten_image(clear).getpixel((0, 0)) == (255, 255, 255)


def test_command_skips_reports_and_says_so(tmp_path: Path) -> None:
    runner = pytest.importorskip("typer.testing").CliRunner()
    from sketchfusion_plugins.cli import app

    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, data in BAD.items():
        (folder / f"{name}.png").write_bytes(data())
    for number in range(3):
        (folder / f"good{number}.png").write_bytes(_saved("PNG"))
    out = tmp_path / "out.jsonl"
    command = ["features", str(folder), "--model", "pixels", "--size", "32", "--out", str(out)]
    result = runner.invoke(app, command)
    assert result.exit_code == 3, result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Path(row["path"]).stem for row in rows] == ["good0", "good1", "good2"]
    for name in BAD:
        assert f"skipped: {folder / name}.png" in result.stderr
    strict = runner.invoke(app, [*command[:-1], str(tmp_path / "b.jsonl"), "--strict"])
    assert strict.exit_code == 1
    assert strict.stderr.startswith("Error:") and len(strict.stderr.splitlines()) == 1
