"""What an index's folder holds, and the one small file that says so.

Data files are written once, under names of their own, and never changed. ``current.json`` names
those that belong together; replacing it is the commit. Whoever reads it therefore sees a whole
generation, the old one or the new one, and a writer that dies leaves only files that nobody names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sketchfusion_plugins.files import hash_file, write_text

Kind = Literal["flat", "ivf", "ivfpq", "hnsw"]
POINTER = "current.json"
FORMAT = 1
DATA_FILE = r"(vectors|items|approximation)-\d{6,}\.(safetensors|jsonl|faiss)"


@dataclass(frozen=True)
class StoredFile:
    """A data file: plain name, bytes, SHA-256."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if re.fullmatch(DATA_FILE, self.name) is None:
            raise ValueError(f"{self.name!r} is no name of a data file")

    @classmethod
    def of(cls, path: Path) -> StoredFile:
        """Describe a file that was just written."""
        return cls(path.name, path.stat().st_size, hash_file(path))

    def check_size(self, folder: Path) -> None:
        """Notice a truncated file without reading it.

        Raises:
            FileNotFoundError: The file is gone.
            OSError: It has another size.
        """
        size = (folder / self.name).stat().st_size
        if size != self.size:
            raise damaged(folder, f"{self.name} has {size:,} bytes instead of {self.size:,}")

    def verify(self, folder: Path) -> None:
        """Read the whole file and compare its checksum.

        Raises:
            OSError: The file is gone or was changed.
        """
        self.check_size(folder)
        if hash_file(folder / self.name) != self.sha256:
            raise damaged(folder, f"{self.name} does not have the SHA-256 it was written with")


@dataclass(frozen=True)
class Shard:
    """Consecutive rows: unit vectors with their lines' offsets, and keys with metadata as lines."""

    vectors: StoredFile
    items: StoredFile
    rows: int


@dataclass(frozen=True)
class Approximation:
    """FAISS structure over the first ``rows`` rows; its lists were learned at ``trained_rows``."""

    file: StoredFile
    rows: int
    trained_rows: int


@dataclass(frozen=True)
class Manifest:
    """One generation of an index.

    Attributes:
        dim: Width of the vectors.
        kind: How it is searched.
        model: Fingerprint of the model that made the vectors; any text.
        generation: Number of commits.
        shards: All rows in order.
        approximation: None while everything is searched exactly.
    """

    dim: int
    kind: Kind
    model: str
    generation: int = 0
    shards: tuple[Shard, ...] = ()
    approximation: Approximation | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}.")
        if self.dim < 1:
            raise ValueError(f"expected vectors of at least one dimension, got {self.dim}.")

    @property
    def rows(self) -> int:
        """Number of vectors."""
        return sum(shard.rows for shard in self.shards)

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All data files."""
        stored = [file for shard in self.shards for file in (shard.vectors, shard.items)]
        return (*stored, self.approximation.file) if self.approximation else tuple(stored)

    def check_model(self, folder: Path, model: str | None) -> None:
        """Refuse vectors of another model.

        Raises:
            ValueError: ``model`` is given and is not the index's.
        """
        if model is not None and model != self.model:
            found, used = tell_apart(self.model, model)
            raise ValueError(
                f"the index {folder} was built with the model {found}, you use {used}. "
                "Vectors of different models cannot be compared: use that model or build "
                "a new index."
            )

    def write(self, folder: Path) -> None:
        """Make this the folder's present generation, atomically.

        Raises:
            OSError: The folder cannot be written to; the former generation stands.
        """
        write_text(
            json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", folder / POINTER
        )

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the folder's present generation.

        Raises:
            FileNotFoundError: The folder holds no index.
            OSError: The file is damaged or of a newer format.
        """
        path = folder / POINTER
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no index: there is no {POINTER}. "
                "sketchfusion index build, or IndexWriter.create, makes one."
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT:
                raise OSError(f"{path} has another format than {FORMAT}. Update this package.")
            return cls(**{**values, **_nested(values)})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise damaged(folder, f"{POINTER}: {error}") from error


def tell_apart(one: str, other: str) -> tuple[str, str]:
    """How errors name two different `Manifest.model`.

    Of JSON objects it is what differs between them, otherwise the texts.
    """
    try:
        first, second = json.loads(one), json.loads(other)
    except ValueError:
        first = second = None
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [key for key in first | second if first.get(key) != second.get(key)]
        if keys:
            return _fields(first, keys), _fields(second, keys)
    return repr(one), repr(other)


def remove_data(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove files that are named as an index' generations name theirs, but for some."""
    for path in folder.iterdir():
        if re.fullmatch(DATA_FILE, path.name) and path.name not in keep:
            # Windows keeps files that readers have mapped; the next writer tries again.
            with suppress(OSError):
                path.unlink()


class DamagedIndexError(OSError):
    """Files of an index are not as they were written."""


def damaged(folder: Path, what: str) -> DamagedIndexError:
    """The error for files that are not as they were written."""
    return DamagedIndexError(
        f"the index {folder} is damaged: {what}. Restore it from a copy or build it anew."
    )


def _fields(values: dict[str, Any], keys: list[str]) -> str:
    told = (f"{key} {values[key]!r}" if key in values else f"no {key}" for key in keys)
    return f"({', '.join(told)})"


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Shards and approximation of parsed JSON as dataclasses."""

    def stored(value: dict[str, Any]) -> StoredFile:
        return StoredFile(**value)

    shards = tuple(
        Shard(stored(shard["vectors"]), stored(shard["items"]), int(shard["rows"]))
        for shard in values["shards"]
    )
    found = values["approximation"]
    approximation = found and Approximation(
        stored(found["file"]), int(found["rows"]), int(found["trained_rows"])
    )
    return {"shards": shards, "approximation": approximation}
