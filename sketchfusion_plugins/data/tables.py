"""Tables of drawings in csv files: a header, then one row a line."""

from __future__ import annotations

import csv
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sketchfusion_plugins.problems import Problems, skipping


def read_rows(
    path: Path, columns: Sequence[str], problems: Problems | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table. Values go over no line's end, so that a damaged line spoils no other.

    Args:
        path: The file, UTF-8.
        columns: Columns that must be there.
        problems: Collects lines that are no rows; without it the first one is an error.

    Yields:
        Numbers of the lines, from 1, and their values by column; blank lines are left out.

    Raises:
        OSError: The file cannot be read, or ``problems`` is strict.
        ValueError: A column is missing, or a line is no row.
    """
    with path.open("rb") as file:
        with readable_table(path):
            # Excel puts a byte order mark first.
            header = _values(next(file, b"").removeprefix(BOM_UTF8))
        missing = [name for name in columns if name not in header]
        if missing:
            raise ValueError(
                f"{path} has no column {', '.join(missing)}; found {', '.join(header)}."
            )
        for number, line in enumerate(file, 2):
            if not line.strip():
                continue
            values = None
            with skipping(problems, f"{path}, line {number}"):
                with readable_table(f"{path}, line {number},"):
                    found = _values(line)
                if len(found) != len(header):
                    raise ValueError(f"expected {len(header)} values, got {len(found)}.")
                values = dict(zip(header, found, strict=True))
            if values is not None:
                yield number, values


@contextmanager
def readable_table(place: str | Path) -> Iterator[None]:
    """Says which csv file, or which line of it, cannot be parsed.

    Raises:
        ValueError: It cannot; the message names it.
    """
    try:
        yield
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{place} is damaged or no UTF-8 table: {error}.") from error


def row_number(text: str) -> int | None:
    """A row's number as it is written in a table; None for any other text."""
    # Longer ones are no numbers of rows, and Python refuses the longest.
    return int(text) if text.isdecimal() and len(text) < 19 else None


def _values(line: bytes) -> list[str]:
    return next(csv.reader([line.decode("utf-8").rstrip("\r\n")], strict=True), [])
