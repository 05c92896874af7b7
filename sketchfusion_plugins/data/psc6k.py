"""PSC6K: 8 key points on each of 6,250 photo-sketch pairs of Sketchy (Lu et al., ICML 2023).

What is read, from https://photo-sketch-correspondence-6k.s3.amazonaws.com/PSC6K.zip, one of

    test_pairs_ps.csv   columns photo, sketch, class, XA, YA (photo), XB, YB (sketch)
    test_pairs_st.csv   columns source_image, target_image, class, XA, YA (source), XB, YB (target);
                        every pair twice, once in either direction

and the pictures that they name relative to Sketchy's folder (`sketchfusion_plugins.data.sketchy`):
``photo/<...>/<category>/<file>`` and ``sketch/<...>/<category>/<file>``. Coordinates are numbers
separated by ``;``, in pixels of the 256 x 256 pictures. `load_psc6k` tells which pairs are trained
on and which are judged.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sketchfusion_plugins.data.pictures import instance_number, label_names
from sketchfusion_plugins.data.tables import readable_table
from sketchfusion_plugins.images import open_image, to_tensor

ProtocolName = Literal["pscnet", "sketchfusion"]
Part = Literal["train", "test"]

URL = "https://photo-sketch-correspondence-6k.s3.amazonaws.com/PSC6K.zip"
HOW_TO_GET = (
    f"PSC6K's annotations are downloaded from {URL}; give test_pairs_ps.csv or test_pairs_st.csv. "
    "Its pictures are Sketchy's (https://sketchy.eye.gatech.edu, 256x256)."
)
ANNOTATED_AT = 256
TRAIN_ROWS, TEST_ROWS = 30, 20
COORDINATES = ("XA", "YA", "XB", "YB")
PHOTO_SKETCH = ("photo", "sketch")
SOURCE_TARGET = ("source_image", "target_image")


@dataclass(frozen=True)
class KeyPointPair:
    """A photo and a sketch of it, with points that correspond.

    Attributes:
        photo: Path relative to Sketchy's folder, with forward slashes.
        sketch: Likewise.
        photo_points: x and y in pixels of 256 x 256.
        sketch_points: Likewise, as many.
    """

    photo: str
    sketch: str
    photo_points: tuple[tuple[float, float], ...]
    sketch_points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.photo_points or len(self.photo_points) != len(self.sketch_points):
            raise ValueError(
                f"{self.photo}, {self.sketch}: expected as many points in the photo as in the "
                f"sketch, got {len(self.photo_points)} and {len(self.sketch_points)}."
            )
        points = (*self.photo_points, *self.sketch_points)
        if not all(math.isfinite(value) for point in points for value in point):
            raise ValueError(
                f"{self.photo}, {self.sketch}: expected finite coordinates, got {points}."
            )

    @property
    def category(self) -> str:
        """Name of the folder that the photo lies in."""
        return PurePosixPath(self.photo).parent.name


class CorrespondenceDataset(Dataset[dict[str, Any]]):
    """Pairs in both directions, as both published protocols train and evaluate.

    Samples ``2 i`` lead from photo ``i`` to its sketch, samples ``2 i + 1`` back: ``source`` and
    ``target`` [3, S, S] in -1..1; ``source_points`` and ``target_points`` [K, 2], x and y in pixels
    of S x S; ``visible`` [K], Boolean, all True: both protocols count every point; ``label``, the
    category's index; ``instance``, the photo's number; ``key``, ``"<source> <target>"``.

    Args:
        pairs: Pairs of as many points each.
        root: Sketchy's folder, to which the pairs' paths are relative.
        size: Side that pictures are resized to.
        categories: Class names in the order of the labels; by default those present, sorted.

    Raises:
        FileNotFoundError: A picture is missing.
        ValueError: No pairs, different numbers of points, or a category is missing.
    """

    def __init__(
        self,
        pairs: Sequence[KeyPointPair],
        root: str | Path,
        size: int = ANNOTATED_AT,
        categories: Sequence[str] | None = None,
    ) -> None:
        counts = sorted({len(pair.photo_points) for pair in pairs})
        if len(counts) != 1:
            raise ValueError(f"expected pairs of as many points each, got {counts} points.")
        self.pairs, self.root, self.size = tuple(pairs), Path(root), size
        for name in sorted({name for pair in pairs for name in (pair.photo, pair.sketch)}):
            if not (self.root / name).is_file():
                raise FileNotFoundError(f"{self.root / name} is missing. {HOW_TO_GET}")
        self.categories = label_names((pair.category for pair in pairs), categories)
        number = {name: index for index, name in enumerate(self.categories)}
        self.labels = torch.tensor([number[pair.category] for pair in pairs for _ in range(2)])

    def picture_files(self) -> list[Path]:
        """All files that samples are read from, but for the table of the points."""
        return [self.root / name for pair in self.pairs for name in (pair.photo, pair.sketch)]

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs[range(len(self))[index] // 2]
        photo = (pair.photo, pair.photo_points)
        sketch = (pair.sketch, pair.sketch_points)
        source, target = (sketch, photo) if index % 2 else (photo, sketch)
        return {
            "source": self._open(source[0]),
            "target": self._open(target[0]),
            "source_points": self._scale(source[1]),
            "target_points": self._scale(target[1]),
            "visible": torch.ones(len(source[1]), dtype=torch.bool),
            "label": int(self.labels[index]),
            "instance": instance_number(pair.category, pair.photo),
            "key": f"{source[0]} {target[0]}",
        }

    def _open(self, name: str) -> Tensor:
        # Stretched: points follow both sides, and Sketchy's pictures are square.
        return to_tensor(open_image(self.root / name), self.size, fit="stretch")

    def _scale(self, points: Sequence[tuple[float, float]]) -> Tensor:
        return torch.tensor(points, dtype=torch.float32) * (self.size / ANNOTATED_AT)


def load_psc6k(
    annotations: str | Path, protocol: ProtocolName = "pscnet", split: Part = "test"
) -> list[KeyPointPair]:
    """Read the annotated pairs of a split.

    ``"pscnet"`` (Lu et al.) trains on no key points and evaluates all pairs at 256 px.
    ``"sketchfusion"`` is what SketchFusion's released code does: rows are sorted by photo, of every
    category the first 30 train and the next 20 are evaluated, at 336 px. All of these are pairs of
    PSC6K's test split, so figures of the two are never comparable.

    Args:
        annotations: ``test_pairs_ps.csv`` or ``test_pairs_st.csv``.
        protocol: Which pairs.
        split: ``"train"`` is there for ``"sketchfusion"`` alone.

    Returns:
        Pairs; with ``"pscnet"`` in the file's order, otherwise sorted by category and photo.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: Unknown protocol or split, columns or values that are not PSC6K's, or a category
            with too few rows for the protocol.
    """
    for name, value, valid in (
        ("protocol", protocol, get_args(ProtocolName)),
        ("split", split, get_args(Part)),
    ):
        if value not in valid:
            raise ValueError(f"unknown {name} {value!r}, valid: {', '.join(valid)}.")
    if (protocol, split) == ("pscnet", "train"):
        raise ValueError(
            "the protocol 'pscnet' trains without key points, so there is no annotated train "
            "split. Train on Sketchy's own pairs, or use the protocol 'sketchfusion'."
        )
    pairs = read_pairs(annotations)
    if protocol == "pscnet":
        return pairs
    by_category: dict[str, list[KeyPointPair]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.photo):
        by_category.setdefault(pair.category, []).append(pair)
    chosen = []
    for name in sorted(by_category):
        rows = by_category[name]
        if len(rows) < TRAIN_ROWS + TEST_ROWS:
            raise ValueError(
                f"{annotations}: {name} has {len(rows)} pairs, the protocol 'sketchfusion' needs "
                f"{TRAIN_ROWS + TEST_ROWS} of every category. Put pairs of your own into one "
                "category; 'pscnet' judges any number."
            )
        chosen += (
            rows[:TRAIN_ROWS] if split == "train" else rows[TRAIN_ROWS : TRAIN_ROWS + TEST_ROWS]
        )
    return chosen


def read_pairs(annotations: str | Path) -> list[KeyPointPair]:
    """Read all pairs of either csv format, each once, in the file's order.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: Columns or values are not PSC6K's; the line is named.
    """
    annotations = Path(annotations)
    if not annotations.is_file():
        raise FileNotFoundError(f"{annotations} is missing. {HOW_TO_GET}")
    pairs: dict[tuple[str, str], KeyPointPair] = {}
    with annotations.open(newline="", encoding="utf-8-sig") as file, readable_table(annotations):
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or ())
        names = next((n for n in (PHOTO_SKETCH, SOURCE_TARGET) if columns >= set(n)), None)
        if names is None or not columns >= set(COORDINATES):
            raise ValueError(
                f"{annotations}: expected the columns {', '.join(COORDINATES)} and either "
                f"{', '.join(PHOTO_SKETCH)} or {', '.join(SOURCE_TARGET)}; got "
                f"{', '.join(sorted(columns))}. The files of training pairs have no key points. "
                f"{HOW_TO_GET}"
            )
        for row in reader:
            try:
                pair = _pair(row, names)
            except ValueError as error:
                raise ValueError(f"{annotations}, line {reader.line_num}: {error}") from error
            pairs.setdefault((pair.photo, pair.sketch), pair)
    if not pairs:
        raise ValueError(f"{annotations} holds no pair. {HOW_TO_GET}")
    return list(pairs.values())


def _pair(row: dict[str, Any], names: tuple[str, str]) -> KeyPointPair:
    values = [[float(n) for n in (row[name] or "").split(";")] for name in COORDINATES]
    if len({len(numbers) for numbers in values}) != 1:
        raise ValueError(
            f"{', '.join(COORDINATES)} hold {', '.join(str(len(n)) for n in values)} numbers, "
            "expected as many in each."
        )
    first = (row[names[0]] or "", tuple(zip(values[0], values[1], strict=True)))
    second = (row[names[1]] or "", tuple(zip(values[2], values[3], strict=True)))
    if names == SOURCE_TARGET and _is_sketch(first[0]):
        first, second = second, first
    if _is_sketch(first[0]) or not _is_sketch(second[0]):
        raise ValueError(
            f"expected a photo and a sketch, told by a folder 'photo' or 'sketch' in their paths, "
            f"got {first[0]!r} and {second[0]!r}."
        )
    return KeyPointPair(first[0], second[0], first[1], second[1])


def _is_sketch(name: str) -> bool:
    parts = PurePosixPath(name).parts
    if ".." in parts or PurePosixPath(name).is_absolute() or len(parts) < 2:
        raise ValueError(f"expected a path below Sketchy's folder, got {name!r}.")
    if ("photo" in parts) == ("sketch" in parts):
        raise ValueError(f"expected a folder 'photo' or 'sketch' in the path, got {name!r}.")
    return "sketch" in parts
