"""Items of a job that cannot be used: collected with their reasons, while the rest is done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Problems:
    """Files, and lines or drawings in them, that could not be used, with the reasons.

    Attributes:
        strict: Raise the first one instead of collecting it.
        found: A line about every one.
    """

    strict: bool = False
    found: list[str] = field(default_factory=list)

    @property
    def first(self) -> str:
        """The line about the first one."""
        return self.found[0] if self.found else "no reason is known"

    def add(self, path: str | Path, error: Exception) -> None:
        """Collect a problem with a file, or with a line in it.

        Raises:
            OSError: ``strict`` is set.
        """
        reason = tell(error)
        line = reason if str(path) in reason else f"{path}: {reason}"
        if self.strict:
            raise OSError(line) from error
        self.found.append(line)


def tell(error: Exception) -> str:
    """What an error says; of the operating system's, the file and what is wrong with it."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if not isinstance(error.filename, (str, bytes, os.PathLike)):
        return str(error)
    name = os.fsdecode(error.filename)
    if error.filename2 is not None:
        # A file that was to be renamed, and its new name.
        second = os.fsdecode(error.filename2)
        if not isinstance(error, IsADirectoryError):
            return f"{name} -> {second}: {error.strerror}."
        name = second
    if isinstance(error, FileNotFoundError):
        return f"{name} does not exist."
    if isinstance(error, IsADirectoryError):
        return f"{name} is a folder, expected a file."
    return f"{name}: {error.strerror}."


@contextmanager
def skipping(problems: Problems | None, place: str | Path) -> Iterator[None]:
    """Leave an item out when reading it raises, and collect why.

    Args:
        problems: The collector; without one the error is raised.
        place: File of the item, or line in it, which is named with the reason.

    Raises:
        OSError: ``problems`` is strict, or there are none to collect.
        ValueError: There are none to collect.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if problems is not None:
            problems.add(place, error)
        elif isinstance(error, OSError) or str(place) in str(error):
            raise
        else:
            raise ValueError(f"{place}: {error}") from error
