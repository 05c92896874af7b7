"""Files of many drawings: what is read, and what is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sketchfusion_plugins.data.compact_strokes import read_compact

ARRAYS: dict[str, Any] = {
    "xy": np.arange(12, dtype=np.int16).reshape(6, 2),
    "stroke": np.array([0, 1, 0, 0, 2, 0], np.int16),
    "offset": np.array([0, 2, 2, 5, 6]),
    "part": np.array([0, 1, 2, 3, 4, 5], np.uint8),
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "strokes.npz"
    arrays = {name: values for name, values in (ARRAYS | changes).items() if values is not None}
    np.savez(path, **arrays)
    return path


def test_drawings_are_the_rows_between_offsets(tmp_path: Path) -> None:
    drawings = read_compact(write(tmp_path), parts=True)
    assert len(drawings) == 4
    assert drawings.strokes(0).points.tolist() == [[0, 1], [2, 3]]
    assert drawings.strokes(2).stroke.tolist() == [0, 0, 2]
    assert drawings.part is not None
    assert drawings.part[drawings.rows(3)].tolist() == [5]
    with pytest.raises(ValueError, match="at least one point"):
        drawings.strokes(1)
    assert read_compact(write(tmp_path, part=None)).part is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": np.array([0, 5, 2, 6])}, "or out of order"),
        ({"offset": np.array([0, 2, 7])}, r"ascend within the points' 0\.\.6, got 0\.\.7"),
        ({"offset": np.array([-1, 2, 6])}, r"got -1\.\.6"),
        ({"offset": np.array([0])}, "at least one drawing"),
        ({"offset": np.array([0.0, 6.0])}, "whole numbers offset"),
        ({"xy": np.zeros((6, 3), np.int16)}, r"xy \[N, 2\]"),
        ({"xy": np.full((6, 2), np.nan)}, "finite coordinates"),
        ({"stroke": np.zeros(5, np.int16)}, r"stroke \[N\], got \[6, 2\] and int16 \[5\]"),
        ({"stroke": np.zeros(6)}, "whole numbers stroke"),
        ({"stroke": np.array([0, 1, 1, 0, 2, 0])}, "those of drawing 2 are not"),
        ({"part": np.zeros(5, np.uint8)}, r"part \[N\]"),
        ({"part": None}, r"found xy, stroke, offset; part is missing"),
        ({"xy": np.array([None] * 6)}, "allow_pickle"),
    ],
)
def test_arrays_that_do_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_compact(path, parts=True)
    assert str(error.value).startswith(f"{path}: ")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"strokes\.npz is missing; expected arrays xy"):
        read_compact(tmp_path / "strokes.npz")
    path = write(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"no \.npz file, or cut off"):
        read_compact(path)
    spoiled = bytearray(whole)
    where = whole.index(ARRAYS["xy"].tobytes())
    spoiled[where] ^= 255
    path.write_bytes(spoiled)
    with pytest.raises(ValueError, match="CRC"):
        read_compact(path)
