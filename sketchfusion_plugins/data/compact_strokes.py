"""Many vector sketches in one file of arrays, as SPG's and Quick, Draw!'s are kept.

A ``.npz`` file holds

    xy      [N, 2]  points, x to the right, y downwards
    stroke  [N]     stroke of every point within its drawing, in the order of drawing
    offset  [D + 1] drawing i is the rows offset[i]:offset[i + 1]
    part    [N]     part label of every point, where the data set has parts
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sketchfusion_plugins.data.strokes import Strokes


@dataclass(frozen=True, eq=False)
class CompactStrokes:
    """D drawings.

    Attributes:
        xy: Points ``[N, 2]``.
        stroke: ``[N]``.
        offset: ``[D + 1]``.
        part: ``[N]``, or None.

    Raises:
        ValueError: The arrays do not fit each other.
    """

    xy: NDArray[Any]
    stroke: NDArray[Any]
    offset: NDArray[Any]
    part: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        count = len(self.xy) if self.xy.ndim == 2 and self.xy.shape[1] == 2 else None
        rows = {"stroke": self.stroke} | ({} if self.part is None else {"part": self.part})
        for name, values in rows.items():
            if values.shape != (count,) or values.dtype.kind not in "iu":
                raise ValueError(
                    f"expected xy [N, 2] and whole numbers {name} [N], got {list(self.xy.shape)} "
                    f"and {values.dtype} {list(values.shape)}."
                )
        offset = self.offset
        if offset.ndim != 1 or len(offset) < 2 or offset.dtype.kind not in "iu":
            raise ValueError(
                f"expected whole numbers offset [D + 1] of at least one drawing, got "
                f"{offset.dtype} {list(offset.shape)}."
            )
        if (offset[1:] < offset[:-1]).any() or offset[0] < 0 or offset[-1] > len(self.xy):
            raise ValueError(
                f"expected offset to ascend within the points' 0..{len(self.xy)}, got "
                f"{offset.min()}..{offset.max()}, or out of order."
            )
        if self.xy.dtype.kind not in "iuf" or not np.isfinite(self.xy).all():
            raise ValueError(f"expected finite coordinates xy, got NaN or inf ({self.xy.dtype}).")
        falls = np.flatnonzero(self.stroke[1:] < self.stroke[:-1]) + 1
        inner = falls[~np.isin(falls, offset)]
        if len(inner):
            drawing = int(np.searchsorted(offset, inner[0], side="right")) - 1
            raise ValueError(f"expected ascending strokes, those of drawing {drawing} are not.")

    def __len__(self) -> int:
        return len(self.offset) - 1

    def rows(self, index: int) -> slice:
        """Rows of a drawing."""
        return slice(int(self.offset[index]), int(self.offset[index + 1]))

    def strokes(self, index: int) -> Strokes:
        """A drawing.

        Raises:
            ValueError: It has no points.
        """
        rows = self.rows(index)
        return Strokes(self.xy[rows], self.stroke[rows])


def read_compact(path: str | Path, parts: bool = False) -> CompactStrokes:
    """Read a file of drawings.

    Args:
        path: The ``.npz`` file.
        parts: Read part labels too.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is damaged, lacks an array, or its arrays do not fit each other.
    """
    names = ("xy", "stroke", "offset", *(("part",) if parts else ()))
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing; expected arrays {', '.join(names)} in it.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz file, or cut off. Fetch it again.")
    try:
        # allow_pickle stays off: a file of object arrays would run code.
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in names if name not in file]
            if missing:
                raise ValueError(
                    f"expected arrays {', '.join(names)}, found {', '.join(file)}; "
                    f"{', '.join(missing)} is missing."
                )
            arrays = {name: file[name] for name in names}
            foreign = [n for n, values in arrays.items() if not isinstance(values, np.ndarray)]
            if foreign:
                raise ValueError(f"{', '.join(foreign)} is no array.")
            return CompactStrokes(**arrays)
    # A damaged archive or header raises whatever its parser stumbles over.
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def readable_table(path: Path) -> Iterator[None]:
    """Says which csv file cannot be parsed.

    Raises:
        ValueError: It cannot; the message names it.
    """
    try:
        yield
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no UTF-8 table: {error}.") from error


def row_number(text: str) -> int | None:
    """A row's number as it is written in a table; None for any other text."""
    # Longer ones are no numbers of rows, and Python refuses the longest.
    return int(text) if text.isdecimal() and len(text) < 19 else None
