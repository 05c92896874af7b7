"""Pictures that come from a browser: read with care, and refused in words for its user.

Nothing here trusts what it is given: formats and sizes are looked at before pixels are decoded.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sketchfusion_plugins.heads.query import PAPER
from sketchfusion_plugins.images import FORMATS, flatten_image

CANVAS = 384
# A blank canvas takes 2 kB, one filled with noise by an upload 600 kB.
LONGEST_CANVAS = 2_000_000
MOST_PIXELS = 50_000_000
LONGEST_SIDE = 768
PREFIX = "data:image/png;base64,"
# Shares of the canvas: the least extent of a drawing, and the most ink of lines on paper.
SMALLEST_EXTENT = 0.04
MOST_INK = 0.6
# Shared by both sides of the ink's longer extent; OpenMoji leaves about as much.
MARGIN = 0.25


class PictureError(ValueError):
    """What is wrong with a picture, in a sentence for the person who sent it."""


@dataclass(frozen=True)
class Box:
    """A square of a picture, which may reach beyond it.

    Attributes:
        left: Left edge in whole pixels.
        top: Upper edge.
        side: Side.
    """

    left: int
    top: int
    side: int

    def crop(self, image: Image.Image) -> Image.Image:
        """The square of a picture; white beyond its edges."""
        square = Image.new("RGB", (self.side, self.side), "white")
        square.paste(image, (-self.left, -self.top))
        return square

    def holds(self, x: float, y: float) -> bool:
        """Whether a point of the picture lies inside."""
        inside = 0 <= x - self.left <= self.side and 0 <= y - self.top <= self.side
        return inside


def decode_canvas(data: object) -> Image.Image:
    """Picture of a canvas, from the PNG that the page sends as a data URL.

    Returns:
        RGB, transparency on white.

    Raises:
        PictureError: It is no such thing, or too large.
    """
    if not isinstance(data, str) or not data.startswith(PREFIX) or len(data) > LONGEST_CANVAS:
        raise PictureError("The drawing did not arrive as a picture. Please reload the page.")
    try:
        raw = base64.b64decode(data[len(PREFIX) :], validate=True)
        return _read(io.BytesIO(raw), ("PNG",), CANVAS * CANVAS)
    except ValueError as error:
        raise PictureError("The drawing arrived damaged. Please draw it again.") from error


def encode_canvas(image: Image.Image) -> str:
    """A picture as a canvas takes it: centred on white, as the data URL of a PNG."""
    from PIL import ImageOps

    padded = ImageOps.pad(image.convert("RGB"), (CANVAS, CANVAS), color="white")
    buffer = io.BytesIO()
    padded.save(buffer, "PNG")
    return PREFIX + base64.b64encode(buffer.getvalue()).decode()


def read_upload(path: str | Path) -> Image.Image:
    """A picture that somebody uploaded.

    Returns:
        RGB, transparency on white, EXIF rotation applied, at most `LONGEST_SIDE` px a side.

    Raises:
        PictureError: It is no picture, has more than `MOST_PIXELS` pixels, or is gone.
    """
    try:
        with Path(path).open("rb") as file:
            image = _read(file, FORMATS, MOST_PIXELS)
    except OSError as error:
        raise PictureError("This picture is no longer where it was.") from error
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    if min(image.size) < 8:
        raise PictureError(
            f"This picture is {image.width} x {image.height} pixels; that is too narrow to see "
            "anything in."
        )
    return image


def find_ink(sketch: Image.Image) -> Box:
    """The square around a sketch's lines, with a margin.

    Wherever and however large something is drawn, the model then sees it as pictures in a gallery
    are: centred, filling the frame.

    Raises:
        PictureError: Nothing is drawn, a dot alone, or hardly any paper is left.
    """
    ink = np.asarray(sketch.convert("RGB")).min(2) < (PAPER + 1) * 127.5
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        raise PictureError("Nothing is drawn yet. Draw something, or take an example.")
    if ink.mean() > MOST_INK:
        raise PictureError("Hardly any paper is left. A sketch is dark lines on white.")
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    if max(height, width) < SMALLEST_EXTENT * max(sketch.size):
        raise PictureError("That is a dot so far. Draw a little more.")
    side = round(max(height, width) * (1 + MARGIN))
    return Box(int(columns[0]) - (side - width) // 2, int(rows[0]) - (side - height) // 2, side)


def _read(file: object, formats: tuple[str, ...], most_pixels: int) -> Image.Image:
    """Decode a file, once its header says that it is not too large.

    Raises:
        PictureError: It is no picture, damaged, or too large.
    """
    try:
        with Image.open(file, formats=formats) as image:  # type: ignore[arg-type]
            if image.width * image.height > most_pixels:
                raise PictureError(
                    f"This picture has {image.width} x {image.height} pixels; at most "
                    f"{most_pixels / 1e6:.2g} million can be read. Please shrink it."
                )
            # JPEG decodes at a fraction of its size, which is all that is needed.
            image.draft("RGB", (2 * LONGEST_SIDE, 2 * LONGEST_SIDE))
            return flatten_image(image)
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError("This picture has too many pixels. Please shrink it.") from error
    except UnidentifiedImageError as error:
        raise PictureError("This file is no picture. PNG, JPEG and WebP can be read.") from error
    # Pillow's readers raise all of these on damaged files.
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise PictureError("This picture is damaged and cannot be read.") from error
