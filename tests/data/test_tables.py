"""Tables: what is a row, and what a damaged line costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sketchfusion_plugins.data.tables import read_rows
from sketchfusion_plugins.problems import Problems

BAD = {
    2: b"\xff,one",
    4: b'"0,one',
    5: b"0",
    6: b"0,one,two",
    8: b'0,"' + b"x" * 200_000 + b'"',
    9: b'0,"one"two',
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = [b"index,class"]
    lines += [BAD.get(number, b'%d,"a, ""b"""' % number) for number in range(2, 12)]
    path = tmp_path / "table.csv"
    path.write_bytes(b"\r\n".join(lines) + b"\r\n\r\n")
    return path


def test_a_damaged_line_spoils_no_other(table: Path) -> None:
    problems = Problems()
    rows = list(read_rows(table, ["class"], problems))
    good = [number for number in range(2, 12) if number not in BAD]
    assert rows == [(n, {"index": str(n), "class": 'a, "b"'}) for n in good]
    assert len(problems.found) == len(BAD)
    for number, line in zip(BAD, problems.found, strict=True):
        assert line.startswith(f"{table}, line {number}")
        assert line.count(str(table)) == 1
    assert "expected 2 values, got 1" in problems.found[2]


def test_the_first_damaged_line_is_the_error(table: Path) -> None:
    with pytest.raises(ValueError, match=r"table\.csv, line 2, is damaged or no UTF-8 table"):
        list(read_rows(table, ["class"]))
    with pytest.raises(OSError, match=r"table\.csv, line 2, is damaged"):
        list(read_rows(table, ["class"], Problems(strict=True)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"has no column class; found \.$"),
        (b"index,word\n0,one\n", "has no column class; found index, word"),
        (b"\xff\n", "is damaged or no UTF-8 table"),
    ],
)
def test_without_its_columns_nothing_is_read(content: bytes, message: str, table: Path) -> None:
    table.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_rows(table, ["class"], Problems()))


def test_what_excel_puts_first_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("index,class\r\n0,one\r\n", encoding="utf-8-sig")
    assert list(read_rows(path, ["index"])) == [(2, {"index": "0", "class": "one"})]
