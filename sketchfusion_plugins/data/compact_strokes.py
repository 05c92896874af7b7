"""Many vector sketches in one file of arrays, as SPG's and Quick, Draw!'s are kept.

A ``.npz`` file holds

    xy      [N, 2]  points, x to the right, y downwards
    stroke  [N]     stroke of every point within its drawing, in the order of drawing
    offset  [D + 1] drawing i is the rows offset[i]:offset[i + 1]
    part    [N]     part label of every point, where the data set has parts
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sketchfusion_plugins.data.strokes import LARGEST_COORDINATE, Strokes


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
        if self.xy.dtype.kind not in "iuf":
            raise ValueError(f"expected coordinates xy, got {self.xy.dtype}.")

    @cached_property
    def faults(self) -> dict[int, str]:
        """Drawings that cannot be drawn, by number, and why; one of them spoils no other."""
        start, stop = self.offset[:-1].astype(np.int64), self.offset[1:].astype(np.int64)
        count = len(self.xy)
        outside = (start < 0) | (start > stop) | (stop > count)
        start, stop = start.clip(0, count), stop.clip(0, count)
        # Written so that NaN is far, too.
        near = (self.xy >= -LARGEST_COORDINATE) & (self.xy <= LARGEST_COORDINATE)
        far = _count_before(~(near[:, 0] & near[:, 1]))
        falls = _count_before(np.append(False, self.stroke[1:] < self.stroke[:-1])[:count])
        reasons = (
            (outside, f"expected offset to ascend within the points' 0..{count}."),
            (start == stop, "expected at least one point, got none."),
            (far[start] < far[stop], f"expected finite xy within {LARGEST_COORDINATE:.0e}."),
            # A drawing's first stroke may be lower than the last of the drawing before.
            (falls[np.minimum(start + 1, stop)] < falls[stop], "expected ascending strokes."),
        )
        return {
            int(index): reason for bad, reason in reversed(reasons) for index in np.flatnonzero(bad)
        }

    def __len__(self) -> int:
        return len(self.offset) - 1

    def rows(self, index: int) -> slice:
        """Rows of a drawing."""
        return slice(int(self.offset[index]), int(self.offset[index + 1]))

    def strokes(self, index: int) -> Strokes:
        """A drawing.

        Raises:
            ValueError: It is one of the `faults`.
        """
        if index in self.faults:
            raise ValueError(f"drawing {index}: {self.faults[index]}")
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


def _count_before(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many are set before every row, and in all: ``[N + 1]``."""
    return np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])
