"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text


def rows_table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> Table:
    """A table whose cells are printed as they are, in full: names may hold rich's markup."""
    table = Table(title=None if title is None else Text(title))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table
