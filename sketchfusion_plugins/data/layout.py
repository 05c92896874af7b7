"""Segmentation data on disk as mmseg expects it, written so that any crash can be resumed.

meta.json                       classes, palette, and what the data was written with
images/{train,val}/NAME.png     RGB
annotations/{train,val}/NAME.png  one byte per pixel: class index, 255 for none
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sketchfusion_plugins.files import remove_unfinished, replacing, write_text

IGNORED = 255
META_FILE = "meta.json"
SPLITS = ("train", "val")


def palette(count: int) -> list[list[int]]:
    """Distinct colours: hues at steps of the golden ratio, three brightnesses in turn.

    Args:
        count: Number of colours.

    Returns:
        ``[count, 3]`` of 0..255.
    """
    colours = []
    for index in range(count):
        hue, value = (index * 0.618034) % 1.0, (1.0, 0.75, 0.5)[index % 3]
        rgb = colorsys.hsv_to_rgb(hue, 0.8, value)
        colours.append([round(255 * channel) for channel in rgb])
    return colours


def begin(out: Path, classes: Sequence[str], written_with: dict[str, Any]) -> None:
    """Prepare a folder, or recognise one whose writing was interrupted.

    Args:
        out: Folder of the data set.
        classes: Names of the classes, in the order of their indices.
        written_with: Whatever changes the files, as JSON values.

    Raises:
        ValueError: The folder holds data that was written otherwise, or no data of ours.
    """
    if len(classes) > IGNORED:
        raise ValueError(f"at most {IGNORED} classes fit a one-byte mask, got {len(classes)}.")
    colours = palette(len(classes))
    meta = {"classes": list(classes), "palette": colours, "written_with": written_with}
    path = out / META_FILE
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}). Delete {out} and start anew.") from None
        if found != meta:
            other = found.get("written_with") if isinstance(found, dict) else found
            raise ValueError(
                f"{out} holds data written with {other}, expected {written_with}. Choose another "
                "folder, or delete this one."
            )
        for folder in (out, *{path.parent for name in SPLITS for path in _paths(out, name, "")}):
            remove_unfinished(folder)
        return
    # A run that was killed before its first file left no more than that file, unfinished.
    begun = f".{META_FILE}."
    if out.exists() and not all(item.name.startswith(begun) for item in out.iterdir()):
        raise ValueError(f"{out} is not empty and has no {META_FILE}. Choose another folder.")
    write_text(json.dumps(meta, indent=1) + "\n", path)


def is_written(out: Path, split: str, name: str) -> bool:
    """Whether an image and its mask are complete."""
    return all(path.exists() for path in _paths(out, split, name))


def write_pair(
    out: Path, split: str, name: str, image: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> None:
    """Write an image and its mask, each atomically, the mask last.

    Args:
        out: Folder of the data set.
        split: ``"train"`` or ``"val"``.
        name: Stem of both files.
        image: ``[H, W, 3]``.
        mask: ``[H, W]`` class indices, `IGNORED` for none.

    Raises:
        OSError: A file cannot be written.
    """
    from PIL import Image

    for path, pixels in zip(_paths(out, split, name), (image, mask), strict=True):
        with replacing(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG", compress_level=6)


def _paths(out: Path, split: str, name: str) -> tuple[Path, Path]:
    return out / "images" / split / f"{name}.png", out / "annotations" / split / f"{name}.png"
