"""Where Quick, Draw!'s drawings come from: ndjson lines, bitmaps, or compact strokes.

Every source lists its drawings once and reads one at a time.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sketchfusion_plugins.data.compact_strokes import read_compact
from sketchfusion_plugins.data.pictures import some_of
from sketchfusion_plugins.data.row_split import present
from sketchfusion_plugins.data.strokes import Strokes
from sketchfusion_plugins.data.tables import read_rows, row_number
from sketchfusion_plugins.problems import Problems, skipping

BASE = "https://storage.googleapis.com/quickdraw_dataset/full"
COMPACT_FILES = ("quickdraw.csv", "quickdraw_strokes.npz")
BITMAP_SIDE = 28
# A browser names a download after the whole path of the object in Google's bucket.
PREFIX = re.compile(r"^full(?:_|%2F)(?:simplified|raw|numpy_bitmap)(?:_|%2F)")
RECOGNIZED = re.compile(rb'"recognized"\s*:\s*(true|false)')


@dataclass(frozen=True)
class Choice:
    """Which drawings are wanted.

    Attributes:
        categories: Their names; None for all.
        recognized: Those that Google's classifier recognised (True) or did not (False); None: all.
        split: Name of a split, where the source has splits; None for all.
        limit: Drawings per category, the first ones; None for all.
    """

    categories: tuple[str, ...] | None = None
    recognized: bool | None = None
    split: str | None = None
    limit: int | None = None


class NdjsonDrawings:
    """One ``<category>.ndjson`` file per category, simplified or raw, one drawing a line.

    Files are scanned once for where lines begin, and never held in memory. Given ``problems``, that
    scan reads the drawings too.
    """

    def __init__(self, root: Path, choice: Choice, problems: Problems | None = None) -> None:
        from tqdm import tqdm

        _refuse_split(root, choice)
        self.files = _files(root, "ndjson", "simplified", choice)
        self.categories = tuple(self.files)
        self.stamps: list[tuple[int, int]] = []
        starts = []
        for path in tqdm(self.files.values(), "Quick, Draw!", unit="file", delay=2, disable=None):
            with path.open("rb") as file:
                self.stamps.append(_stamp(file))
                found = islice(_starts(file, path, choice.recognized, problems), choice.limit)
                starts.append(np.fromiter(found, dtype=np.int64))
        self.labels = np.repeat(np.arange(len(starts)), [len(offsets) for offsets in starts])
        self.offsets = np.concatenate(starts)
        _tell_empty(root, self.categories, self.labels)

    def read(self, index: int) -> tuple[str, Strokes]:
        """``"category/key_id"``, and the drawing.

        Raises:
            ValueError: The line is no drawing, or the file has changed.
        """
        label, offset = int(self.labels[index]), int(self.offsets[index])
        path = self.files[self.categories[label]]
        with path.open("rb") as file:
            if _stamp(file) != self.stamps[label]:
                raise ValueError(
                    f"{path} has changed since its lines were indexed. Build the data set anew."
                )
            file.seek(offset)
            line = file.readline()
        try:
            key, strokes = _parse(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {_line_number(path, offset)}: {error}") from None
        return f"{self.categories[label]}/{key}", strokes


class BitmapDrawings:
    """One ``<category>.npy`` file per category: ``[N, 784]`` bytes, white on black.

    A file is good or bad as a whole: without one, the categories would be others.
    """

    def __init__(self, root: Path, choice: Choice, problems: Problems | None = None) -> None:
        _refuse_split(root, choice)
        if choice.recognized is not None:
            raise ValueError(
                "bitmaps do not say which drawings were recognized; leave recognized=None, or use "
                "the ndjson files."
            )
        self.files = _files(root, "npy", "numpy_bitmap", choice)
        self.categories = tuple(self.files)
        counts = [len(self._bitmaps(name)[: choice.limit]) for name in self.categories]
        self.labels = np.repeat(np.arange(len(counts)), counts)
        self.rows = np.concatenate([np.empty(0, np.int64), *(np.arange(n) for n in counts)])
        _tell_empty(root, self.categories, self.labels)

    def read(self, index: int) -> tuple[str, NDArray[np.uint8]]:
        """``"category/row"``, and the drawing ``[28, 28]``, black on white."""
        name, row = self.categories[self.labels[index]], int(self.rows[index])
        bitmap = np.array(self._bitmaps(name)[row]).reshape(BITMAP_SIDE, BITMAP_SIDE)
        return f"{name}/{row}", 255 - bitmap

    def _bitmaps(self, name: str) -> NDArray[np.uint8]:
        # Mapped anew every time: a mapped array would be copied whole into worker processes.
        path = self.files[name]
        try:
            bitmaps: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        # A damaged header raises whatever its parser stumbles over.
        except Exception as error:
            if isinstance(error, OSError) and not path.is_file():
                raise
            raise ValueError(f"{path} is no .npy file, or cut off ({error}).") from None
        if not isinstance(bitmaps, np.ndarray):
            bitmaps.close()
            raise ValueError(f"{path} is an archive of arrays, expected a single one.")
        if bitmaps.dtype != np.uint8 or bitmaps.shape[1:] != (BITMAP_SIDE**2,):
            raise ValueError(
                f"{path}: expected bytes [N, {BITMAP_SIDE**2}], got {bitmaps.dtype} "
                f"{list(bitmaps.shape)}."
            )
        return bitmaps


class CompactDrawings:
    """A ``.csv`` file with columns index, class, recognized, key_id, and a file of strokes.

    A column ``split`` is optional.
    """

    def __init__(self, root: Path, choice: Choice, problems: Problems | None = None) -> None:
        table, arrays = (root / name for name in COMPACT_FILES)
        for path in (table, arrays):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} is missing; expected {' and '.join(COMPACT_FILES)} in {root}."
                )
        self.drawings = read_compact(arrays)
        wanted = ["index", "class", "key_id"]
        wanted += ["recognized"] if choice.recognized is not None else []
        wanted += ["split"] if choice.split is not None else []
        rows = []
        for line, row in read_rows(table, wanted, problems):
            with skipping(problems, f"{table}, line {line}"):
                index = row_number(row["index"])
                if index is None or index >= len(self.drawings):
                    raise ValueError(
                        f"expected an index below {len(self.drawings)}, got {row['index']!r}."
                    )
                self.drawings.strokes(index)
                rows.append((index, row))
        self.categories = tuple(sorted(choice.categories or {row["class"] for _, row in rows}))
        unknown = set(self.categories) - {row["class"] for _, row in rows}
        if unknown:
            raise ValueError(f"{table} has no category {', '.join(sorted(unknown))}.")
        if choice.split is not None and choice.split not in {row["split"] for _, row in rows}:
            known = ", ".join(sorted({row["split"] for _, row in rows}))
            raise ValueError(f"{table} has no split {choice.split!r}, expected one of {known}.")
        number = {name: label for label, name in enumerate(self.categories)}
        counts = dict.fromkeys(self.categories, 0)
        labels, indices, self.keys = [], [], []
        for index, row in rows:
            name = row["class"]
            if (
                name in number
                and (choice.recognized is None or row["recognized"] == f"{choice.recognized:d}")
                and (choice.split is None or row["split"] == choice.split)
                and (choice.limit is None or counts[name] < choice.limit)
            ):
                counts[name] += 1
                labels.append(number[name])
                indices.append(index)
                self.keys.append(f"{name}/{row['key_id']}")
        self.labels = np.array(labels, dtype=np.int64)
        self.indices = np.array(indices, dtype=np.int64)
        _tell_empty(root, self.categories, self.labels)

    def read(self, index: int) -> tuple[str, Strokes]:
        """``"category/key_id"``, and the drawing.

        Raises:
            ValueError: The drawing has no points.
        """
        return self.keys[index], self.drawings.strokes(int(self.indices[index]))


def _files(root: Path, suffix: str, kind: str, choice: Choice) -> dict[str, Path]:
    """Files by category, sorted; hidden files are passed over."""
    files: dict[str, Path] = {}
    # macOS packs a hidden ._cat.ndjson beside every file of an archive.
    for path in sorted(root.glob(f"[!.]*.{suffix}")):
        name = PREFIX.sub("", path.stem)
        if name in files:
            raise ValueError(f"{files[name]} and {path} both hold {name!r}. Keep one of them.")
        files[name] = path
    advice = (
        f"Fetch {BASE}/{kind}/<category>.{suffix}, or all with: gsutil -m cp "
        f"'gs://quickdraw_dataset/full/{kind}/*.{suffix}' {root}"
    )
    if not files:
        raise FileNotFoundError(f"no file <category>.{suffix} in {root}. {advice}")
    for name in choice.categories or ():
        if name not in files:
            raise FileNotFoundError(f"{root / name}.{suffix} is missing. {advice}")
    return {name: files[name] for name in sorted(choice.categories or files)}


def _tell_empty(root: Path, categories: Sequence[str], labels: NDArray[np.int64]) -> None:
    """Warn of categories without a drawing; where all are, no data set is made."""
    empty = set(categories) - present(categories, labels)
    if empty and len(labels):
        warnings.warn(
            f"{root} has no drawing that is asked for and can be read of {some_of(empty)}, and "
            "they stay among the categories. Fetch their files anew, or leave them out.",
            stacklevel=4,
        )


def _refuse_split(root: Path, choice: Choice) -> None:
    if choice.split is not None:
        raise ValueError(
            f"Google's files in {root} have no splits, got split={choice.split!r}. Leave it None "
            "and divide the data set, for example with torch.utils.data.Subset."
        )


def _starts(
    file: BinaryIO, path: Path, recognized: bool | None, problems: Problems | None
) -> Iterator[int]:
    """Where the lines begin that are wanted and, given ``problems``, can be read."""
    start = 0
    for number, line in enumerate(file, 1):
        wanted = False
        with skipping(problems, f"{path}, line {number}"):
            chosen = _is_chosen(line, recognized)
            if chosen and problems is not None:
                _parse(line)
            wanted = chosen
        if wanted:
            yield start
        start += len(line)


def _is_chosen(line: bytes, recognized: bool | None) -> bool:
    if not line.strip():
        raise ValueError("expected a JSON object, got a blank line.")
    if recognized is None:
        return True
    flag = RECOGNIZED.search(line)
    if flag is None:
        raise ValueError('expected "recognized": true or false.')
    return (flag[1] == b"true") == recognized


def _parse(line: bytes) -> tuple[str, Strokes]:
    """A drawing's key_id, and the drawing."""
    try:
        record = json.loads(line)
        strokes = Strokes.from_paths([_points(stroke) for stroke in record["drawing"]])
        return str(record["key_id"]), strokes
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            "expected a JSON object with key_id and drawing [[[x, ...], [y, ...]], ...], got "
            f"{type(error).__name__}: {error}"
        ) from None


def _points(stroke: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Points ``[n, 2]`` of ``[x, y]`` or, in raw files, ``[x, y, t]``."""
    rows: NDArray[np.float64] = np.array(stroke, dtype=np.float64)
    if rows.ndim != 2 or len(rows) not in (2, 3):
        raise ValueError(f"a stroke of shape {list(rows.shape)}")
    points: NDArray[np.float64] = rows[:2].T
    return points


def _stamp(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _line_number(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        return file.read(offset).count(b"\n") + 1
