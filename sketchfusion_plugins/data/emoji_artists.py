"""Other artists' pictures of OpenMoji's concepts: galleries that no line drawing is aligned with.

Read are

- a folder of SVG files named by code points, as Noto, Twemoji and Fluent ship them:
  ``emoji_u1f600.svg``, ``1f468-200d-1f680.svg``;
- a folder with ``icons.json`` and ``chars.json``, as the npm packages ``@iconify-json/noto``
  (Apache-2.0), ``@iconify-json/twemoji`` (CC BY 4.0) and ``@iconify-json/fluent-emoji-flat`` (MIT)
  unpack: ``npm pack @iconify-json/noto``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sketchfusion_plugins.data.openmoji import Concept, rasterise
from sketchfusion_plugins.data.svg import SVG

ICONS, CHARACTERS = "icons.json", "chars.json"
DEFAULT_SIDE = 16
# Some icons use its prefix and leave the declaration to the document.
XLINK = "http://www.w3.org/1999/xlink"


def load_artist(
    folder: str | Path, concepts: Sequence[Concept], size: int = 128, progress: bool = True
) -> tuple[list[Concept], NDArray[np.uint8]]:
    """Draw another artist's pictures of the concepts that are there.

    Args:
        folder: Folder of SVG files or of an iconify package.
        concepts: The concepts looked for.
        size: Side of the pictures in pixels.
        progress: Show a progress bar, when standard error is a terminal.

    Returns:
        The M concepts that were found, in their order; and pictures on white, uint8
        ``[M, size, size, 3]``.

    Raises:
        FileNotFoundError: The folder holds neither, or none of the concepts.
        ValueError: A drawing or a JSON file cannot be read.
        ModuleNotFoundError: A package of the ``quickstart`` extra is missing.
    """
    from tqdm import tqdm

    folder = Path(folder)
    icons = (folder / ICONS).is_file()
    drawings: dict[str, str | Path] = dict(_iconify(folder) if icons else _files(folder))
    found = [concept for concept in concepts if plain_code(concept.hexcode) in drawings]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no picture of the {len(concepts)} concepts; expected SVG files named "
            f"by code points (emoji_u1f600.svg, 1f600.svg), or {ICONS} and {CHARACTERS} of an "
            "iconify package (npm pack @iconify-json/noto)."
        )
    pictures = np.empty((len(found), size, size, 3), np.uint8)
    disable = None if progress else True
    for index, concept in enumerate(tqdm(found, desc=folder.name, disable=disable)):
        drawing = drawings[plain_code(concept.hexcode)]
        svg = drawing.read_bytes() if isinstance(drawing, Path) else drawing.encode()
        try:
            pictures[index] = rasterise(svg, size)
        except ValueError as error:
            raise ValueError(f"{folder}, {concept.hexcode}: {error}") from error
    return found, pictures


def plain_code(code: str) -> str:
    """Code points in lower case joined by ``-``, without FE0F, on which artists disagree."""
    code = code.lower().removeprefix("emoji_u").replace("_", "-")
    return "-".join(point for point in code.split("-") if point != "fe0f")


def _files(folder: Path) -> Iterator[tuple[str, str | Path]]:
    for path in sorted(folder.glob("*.svg")):
        yield plain_code(path.stem), path


def _iconify(folder: Path) -> Iterator[tuple[str, str | Path]]:
    collection, characters = (_read(folder / name) for name in (ICONS, CHARACTERS))
    icons: dict[str, dict[str, Any]] = collection.get("icons", {})
    for code, name in characters.items():
        icon = icons.get(name)
        # Aliases are other names of icons; chars.json names the icons themselves.
        if icon is not None:
            sides = [
                icon.get(key, collection.get(key, DEFAULT_SIDE)) for key in ("width", "height")
            ]
            start = [icon.get(key, collection.get(key, 0)) for key in ("left", "top")]
            box = " ".join(str(number) for number in (*start, *sides))
            yield (
                plain_code(code),
                f'<svg xmlns="{SVG}" xmlns:xlink="{XLINK}" viewBox="{box}">{icon["body"]}</svg>',
            )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; an iconify package has {ICONS} beside it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}.")
    return content
