"""SPG: free-hand sketches of 20 classes whose strokes carry part labels, as segmentation data.

Sketches are Quick, Draw!'s (Google, CC BY 4.0); the labels come from "Toward Deep Universal Sketch
Perceptual Grouper" (Li et al., IEEE TIP 2019). What is read is a compact form of it, a folder with

    spg.csv             a header, then a drawing a line, with the columns index, class and split;
                        others are left alone
    spg_strokes.npz     arrays xy, stroke, part and offset of all drawings; see
                        `data.compact_strokes`
    parts.json          {"<class>": ["<part>", ...], ...}

``index`` is the drawing's number in the arrays, from 0: drawing i is their rows ``offset[i]`` to
``offset[i + 1]``, the latter excluded. ``split`` is ``train``, which is trained on, or ``valid``,
which is judged and comes out as ``val``. ``xy`` is absolute, y downwards, in any unit. ``stroke``
counts a drawing's strokes in the order of drawing. ``part`` of a point is the place of its part in
the list of its class, from 0; in pictures, a stroke has the part of its first point.

The authors publish drawings as rows (dx, dy, pen state, group) at
https://github.com/KeLi-SketchX/SketchX-PRIS-Dataset, and nothing here converts them. ``xy`` is the
running sum of dx and dy, ``stroke`` goes up by one where the pen was lifted, and a group is a part;
which name a group has, and whether groups count from 0, is to be looked up there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sketchfusion_plugins.data.compact_strokes import CompactStrokes, read_compact
from sketchfusion_plugins.data.layout import begin, is_written, write_pair
from sketchfusion_plugins.data.strokes import Strokes, StrokeStyle, place, render_labels
from sketchfusion_plugins.data.tables import read_rows, row_number
from sketchfusion_plugins.files import hash_file, remove_unfinished, write_safetensors
from sketchfusion_plugins.problems import Problems, skipping

HOW_TO_GET = (
    "They are a compact form: spg.csv with the columns index, class and split (train or valid), "
    "spg_strokes.npz with xy, stroke, part and offset (see data/compact_strokes.py), parts.json "
    "with part names by class. Make them from the drawings (dx, dy, pen state, group) at "
    "https://github.com/KeLi-SketchX/SketchX-PRIS-Dataset."
)
FILES = ("spg.csv", "spg_strokes.npz", "parts.json")
SPLITS = {"train": "train", "valid": "val"}
SEPARATOR = ": "
FILE_NAME = re.compile(r"\w[\w .()-]*")


@dataclass(frozen=True)
class Drawing:
    """One sketch.

    Attributes:
        index: Number in the source.
        category: Class, e.g. ``"airplane"``.
        split: ``"train"`` or ``"val"``.
        xy: Points ``[N, 2]``, x to the right, y downwards.
        stroke: Stroke of every point ``[N]``, not decreasing.
        label: Class index of every point's part ``[N]``.
    """

    index: int
    category: str
    split: str
    xy: NDArray[np.float32]
    stroke: NDArray[np.int64]
    label: NDArray[np.int64]

    @property
    def strokes(self) -> Strokes:
        """What is drawn, without labels."""
        return Strokes(self.xy, self.stroke)

    @property
    def name(self) -> str:
        """Stem of its files."""
        return f"{self.category}_{self.index:05d}"


def load_spg(
    source: str | Path, problems: Problems | None = None
) -> tuple[list[str], list[Drawing]]:
    """Read the data set.

    Args:
        source: Folder with the three files.
        problems: Collects drawings that cannot be used; without it the first one is an error.

    Returns:
        Class names ``"category: part"`` in alphabetical order of categories, and drawings.

    Raises:
        FileNotFoundError: A file is missing.
        OSError: A drawing cannot be used, and ``problems`` is strict.
        ValueError: The files do not agree with each other.
    """
    source = Path(source)
    for name in FILES:
        if not (source / name).is_file():
            raise FileNotFoundError(
                f"{source / name} is missing; SPG needs {', '.join(FILES)} in one folder. "
                f"{HOW_TO_GET}"
            )
    parts = _read_parts(source / FILES[2])
    classes = [f"{name}{SEPARATOR}{part}" for name in sorted(parts) for part in parts[name]]
    drawn = read_compact(source / FILES[1], parts=True)
    table = source / FILES[0]
    drawings = []
    for line, row in read_rows(table, ("index", "class", "split"), problems):
        with skipping(problems, f"{table}, line {line}"):
            drawings.append(_drawing(row, drawn, parts))
    return classes, drawings


def draw(
    drawing: Drawing, size: int, width: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """Rasterise a drawing and the labels of its strokes.

    Where strokes cross, the later one is seen and labelled.

    Args:
        drawing: The drawing.
        size: Side of the picture in pixels.
        width: Width of a stroke in pixels.

    Returns:
        Black on white ``[size, size, 3]``; class indices ``[size, size]``, `IGNORED` off strokes;
        points ``[N, 2]`` in pixels.
    """
    picture = render_labels(drawing.strokes, drawing.label, StrokeStyle(size, width))
    return picture.image, picture.mask, picture.strokes.points


def write_spg(
    source: str | Path,
    out: str | Path,
    size: int = 128,
    width: float = 2.0,
    limit: int | None = None,
    progress: bool = True,
    problems: Problems | None = None,
) -> None:
    """Write SPG as an mmseg data set, with the points that the stroke metrics need.

    What is already written is kept; a second run changes no byte.
    ``points/{train,val}.safetensors`` holds ``xy`` [N, 2] in pixels, ``stroke`` [N], ``label`` [N],
    ``offset`` [D + 1] and ``size`` of the pictures; the names of the D drawings are JSON in its
    metadata.

    Args:
        source: Folder with SPG's files.
        out: Folder to write.
        size: Side of the pictures in pixels.
        width: Width of a stroke in pixels.
        limit: Drawings per class and split; None for all.
        progress: Show a progress bar, when standard error is a terminal.
        problems: Collects drawings that cannot be used; without it the first one is an error.

    Raises:
        FileNotFoundError: A source file is missing.
        OSError: A drawing cannot be used and ``problems`` is strict, or none can be used.
        ValueError: The source is inconsistent, or ``out`` holds data written otherwise.
    """
    from tqdm import tqdm

    source, out = Path(source), Path(out)
    if size < 32 or width <= 0 or (limit is not None and limit < 1):
        raise ValueError(
            f"size must be at least 32, width positive and limit at least 1; got size={size}, "
            f"width={width}, limit={limit}."
        )
    classes, drawings = load_spg(source, problems)
    if problems is not None and not drawings:
        raise OSError(f"no drawing in {source} can be used: {problems.first}")
    drawings = _first(drawings, limit)
    written_with = {
        "data": "SPG",
        "size": size,
        "width": width,
        "limit": limit,
        "source": {name: hash_file(source / name)[:16] for name in FILES},
    }
    begin(out, classes, written_with)
    remove_unfinished(out / "points")
    disable = None if progress else True
    for drawing in tqdm(drawings, desc="SPG", unit="sketch", disable=disable):
        if not is_written(out, drawing.split, drawing.name):
            image, mask, _ = draw(drawing, size, width)
            write_pair(out, drawing.split, drawing.name, image, mask)
    for split in SPLITS.values():
        path = out / "points" / f"{split}.safetensors"
        if not path.exists():
            _write_points([d for d in drawings if d.split == split], size, path)


def _drawing(row: dict[str, str], drawn: CompactStrokes, parts: dict[str, list[str]]) -> Drawing:
    category, split, index = row["class"], row["split"], row_number(row["index"])
    if split not in SPLITS or category not in parts or index is None or index >= len(drawn):
        raise ValueError(
            f"unknown split, class or index in {row}; expected split in {', '.join(SPLITS)}, class "
            f"of {FILES[2]}, index below {len(drawn)}."
        )
    strokes = drawn.strokes(index)
    assert drawn.part is not None
    part, count = drawn.part[drawn.rows(index)], len(parts[category])
    if part.min() < 0 or part.max() >= count:
        raise ValueError(
            f"drawing {index} ({category}) has a part of {count} or more, expected 0..{count - 1}."
        )
    first = sum(len(parts[name]) for name in parts if name < category)
    label = part.astype(np.int64) + first
    return Drawing(index, category, SPLITS[split], strokes.points, strokes.stroke, label)


def _read_parts(path: Path) -> dict[str, list[str]]:
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
        # Categories become names of files, which must stay in the data set's folder.
        if not all(FILE_NAME.fullmatch(name) for name in parts):
            raise ValueError(f"names of classes with characters other than {FILE_NAME.pattern}")
        if not all(isinstance(names, list) for names in parts.values()):
            raise ValueError(f"{parts}")
        return {str(name): [str(part) for part in names] for name, names in parts.items()}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected part names by class, {{class: [part, ...]}}, got {error}."
        ) from None


def _write_points(drawings: Sequence[Drawing], size: int, path: Path) -> None:
    counts = [len(drawing.label) for drawing in drawings]
    empty = np.empty(0, np.int64)
    write_safetensors(
        {
            "xy": torch.from_numpy(
                np.concatenate(
                    [np.empty((0, 2), np.float32), *(place(d.xy, size) for d in drawings)]
                )
            ),
            "stroke": torch.from_numpy(np.concatenate([empty, *(d.stroke for d in drawings)])),
            "label": torch.from_numpy(np.concatenate([empty, *(d.label for d in drawings)])),
            "offset": torch.tensor([0, *np.cumsum(counts)], dtype=torch.int64),
            "size": torch.tensor(size),
        },
        path,
        {"names": json.dumps([drawing.name for drawing in drawings])},
    )


def _first(drawings: Sequence[Drawing], limit: int | None) -> list[Drawing]:
    seen: dict[tuple[str, str], int] = {}
    kept = []
    for drawing in drawings:
        key = (drawing.category, drawing.split)
        seen[key] = seen.get(key, 0) + 1
        if limit is None or seen[key] <= limit:
            kept.append(drawing)
    return kept
