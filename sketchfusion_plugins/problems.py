"""Items of a job that cannot be used: collected with their reasons, while the rest is done."""

from __future__ import annotations

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
        return self.found[0] if self.found else "other processes tell which and why"

    def add(self, path: str | Path, error: Exception) -> None:
        """Collect a problem with a file, or with a line in it.

        Raises:
            OSError: ``strict`` is set.
        """
        reason = str(error)
        line = reason if str(path) in reason else f"{path}: {reason}"
        if self.strict:
            raise OSError(line) from error
        self.found.append(line)


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
