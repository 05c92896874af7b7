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
        ({"offset": np.array([0])}, "at least one drawing"),
        ({"offset": np.array([0.0, 6.0])}, "whole numbers offset"),
        ({"xy": np.zeros((6, 2), complex)}, "expected coordinates xy, got complex128"),
        ({"xy": np.zeros((6, 3), np.int16)}, r"xy \[N, 2\]"),
        ({"stroke": np.zeros(5, np.int16)}, r"stroke \[N\], got \[6, 2\] and int16 \[5\]"),
        ({"stroke": np.zeros(6)}, "whole numbers stroke"),
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


def _with(row: int, value: float) -> Any:
    xy = np.ones((6, 2))
    xy[row, 1] = value
    return xy


@pytest.mark.parametrize(
    ("changes", "bad", "reason"),
    [
        ({"xy": _with(3, np.nan)}, [2], "finite xy within 1e+06"),
        ({"xy": _with(4, -np.inf)}, [2], "finite xy within 1e+06"),
        ({"xy": _with(5, 1.1e6)}, [3], "finite xy within 1e+06"),
        ({"stroke": np.array([0, 1, 0, 2, 1, 0])}, [2], "ascending strokes"),
        ({"stroke": np.array([1, 0, 0, 0, 2, 0], np.uint8)}, [0], "ascending strokes"),
        ({"offset": np.array([0, 2, 3, 5, 7])}, [3], "ascend within the points' 0..6"),
        ({"offset": np.array([-1, 2, 3, 5, 6])}, [0], "ascend within the points' 0..6"),
        ({"offset": np.array([0, 2, 9, 5, 6])}, [1, 2], "ascend within the points' 0..6"),
        ({"offset": np.array([0, 2**63 + 1, 2, 5, 6], np.uint64)}, [0, 1], "0..6"),
        ({"offset": np.array([0, 2, 3, 3, 5])}, [2], "at least one point"),
    ],
)
def test_a_bad_drawing_spoils_no_other(
    changes: dict[str, Any], bad: list[int], reason: str, tmp_path: Path
) -> None:
    whole = {"offset": np.array([0, 2, 3, 5, 6]), "stroke": np.array([0, 1, 0, 1, 2, 0])}
    drawings = read_compact(write(tmp_path, **(whole | changes)))
    assert sorted(drawings.faults) == bad
    for index in range(len(drawings)):
        if index in bad:
            with pytest.raises(ValueError, match=f"drawing {index}: expected") as error:
                drawings.strokes(index)
            assert reason in str(error.value)
        else:
            assert np.isfinite(drawings.strokes(index).points).all()


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
