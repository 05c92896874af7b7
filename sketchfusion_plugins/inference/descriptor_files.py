"""Files of descriptors: JSON lines that grow and resume; Parquet, safetensors written at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from io import BufferedReader, FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from sketchfusion_plugins.files import lock_file, replacing, write_safetensors
from sketchfusion_plugins.problems import Problems, skipping

# Bytes of a safetensors header, which holds the paths; the rest of it takes a few hundred.
LARGEST_HEADER = 100_000_000
HEADER_REST = 1000
LINE_START = b'{"path": "'
SUFFIXES = (".jsonl", ".parquet", ".safetensors")


class DescriptorWriter:
    """Writes descriptors with their pictures' paths; a context manager.

    A ``.jsonl`` file gets a line ``{"path", "model", "descriptor"}`` at once for every picture, and
    in it ``"folder"``, the working folder, where the path is relative; an existing one is
    continued, by one writer at a time and, if it holds relative paths, in their folder alone.
    ``.parquet`` (columns ``path`` and ``descriptor``) and ``.safetensors`` (``descriptors`` [N, D],
    with ``paths`` and ``model`` in the header) are written atomically when the block ends without
    error, and replace what was there; `fitting_paths` tells beforehand what they cannot hold.

    Args:
        path: File to write.
        model: Fingerprint of the model that makes the descriptors.

    Raises:
        ValueError: Unknown suffix, or the file holds lines of another model, paths relative to
            another folder, or no lines of ours.
        ModuleNotFoundError: pyarrow is needed and not installed.
        BlockingIOError: Another writer has the ``.jsonl`` file open.
        OSError: The file cannot be written.

    Attributes:
        known: Paths that are in the file already.
    """

    def __init__(self, path: str | Path, model: str) -> None:
        self.path, self.model = Path(path), model
        self.suffix = self.path.suffix.lower()
        check_target(self.path)
        self.known: frozenset[str] = frozenset()
        self._file: FileIO | None = None
        if self.suffix == ".jsonl":
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what could not be written must not be tried again when the file is closed.
            self._file = self.path.open("ab+", buffering=0)
            try:
                self.known = self._continue()
            except BaseException:
                self._file.close()
                raise
        self._paths: list[str] = []
        self._descriptors: list[Tensor] = []

    def add(self, paths: Sequence[str | Path], descriptors: Tensor) -> None:
        """Add descriptors ``[B, D]`` of B pictures.

        Raises:
            OSError: The disk is full; the file holds what it held before.
            ValueError: The file cannot hold one of the paths; none of these was added.
        """
        descriptors = descriptors.detach().cpu().float()
        names = [str(path) for path in paths]
        if self._file is None:
            if self.suffix == ".parquet":
                for name in names:
                    _check_encoding(name)
            self._paths += names
            self._descriptors.append(descriptors)
            return
        lines = [
            json.dumps(
                {"path": name, **_folder_of(name), "model": self.model, "descriptor": values}
            )
            + "\n"
            for name, values in zip(names, descriptors.tolist(), strict=True)
        ]
        end = self._file.seek(0, os.SEEK_END)
        left = memoryview("".join(lines).encode())
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(end)
            # What is written without a buffer fails without a name.
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def __enter__(self) -> DescriptorWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            is_empty = not self._file.seek(0, os.SEEK_END)
            if sys.platform == "win32":
                # It deletes no open file, and knows no lock that closing would give up.
                self._file.close()
            if is_empty:
                self.path.unlink(missing_ok=True)
            self._file.close()
        if kind is not None or not self._paths:
            return
        import torch

        descriptors = torch.cat(self._descriptors)
        if self.suffix == ".safetensors":
            header = {"paths": json.dumps(self._paths), "model": self.model}
            write_safetensors({"descriptors": descriptors}, self.path, header)
        else:
            _write_parquet(self.path, self._paths, descriptors, self.model)

    def _continue(self) -> frozenset[str]:
        """Paths in the file, whose last line is cut off if a crash left it unfinished."""
        assert self._file is not None
        if not lock_file(self._file.fileno()):
            raise BlockingIOError(
                f"another process is writing {self.path}. Wait until it ends, or choose another "
                "file."
            )
        self._file.seek(0)
        lines = BufferedReader(self._file)
        try:
            known, end = _read_lines(lines, self.path, self.model)
        finally:
            # Else the file would be closed with the buffer.
            lines.detach()
        self._file.truncate(end)
        return known


def known_paths(path: Path, model: str) -> frozenset[str]:
    """Paths in a ``.jsonl`` file, which may have a writer; none if there is no such file.

    Raises:
        ValueError: The file holds lines of another model, paths relative to another folder, or no
            lines of ours.
        OSError: The file cannot be read.
    """
    if path.suffix.lower() != ".jsonl" or not path.exists():
        return frozenset()
    with path.open("rb") as file:
        return _read_lines(file, path, model)[0]


def check_target(path: Path) -> None:
    """Refuse what cannot be written before anything is computed.

    Raises:
        ValueError: Unknown suffix.
        ModuleNotFoundError: pyarrow is needed and not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"cannot write {path.name!r}; valid suffixes: {', '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        _require_pyarrow()


def fitting_paths(target: Path, paths: Sequence[Path], problems: Problems) -> list[Path]:
    """Pictures whose paths a file of descriptors can hold, known before any is described.

    Args:
        target: The file to write.
        paths: All pictures that may come into it.
        problems: Collects those that it cannot hold.

    Raises:
        OSError: There is one, and ``problems`` is strict.
        ValueError: All paths together are more than a safetensors header can hold.
    """
    suffix = target.suffix.lower()
    if suffix == ".parquet":
        fitting = []
        for path in paths:
            with skipping(problems, path):
                _check_encoding(str(path))
                fitting.append(path)
        return fitting
    if suffix == ".safetensors":
        # The header is JSON and has them as JSON in a string, whose quotes are escaped.
        size = len(json.dumps(json.dumps([str(path) for path in paths])))
        room = LARGEST_HEADER - HEADER_REST
        if size > room:
            raise ValueError(
                f"the paths of {len(paths):,} pictures take {size:,} bytes of the file's header, "
                f"expected at most {room:,}. Write a file ending in .jsonl or .parquet."
            )
    return list(paths)


def _check_encoding(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            "its path is not UTF-8, which Parquet asks for. Rename it, or write a file ending in "
            ".jsonl or .safetensors."
        ) from error


def _folder_of(name: str) -> dict[str, str]:
    """What a line adds to a relative path, which would else be another picture's elsewhere."""
    return {} if Path(name).is_absolute() else {"folder": str(Path.cwd())}


def _write_parquet(path: Path, names: Sequence[str], descriptors: Tensor, model: str) -> None:
    arrow = _require_pyarrow()
    from pyarrow import parquet

    values = arrow.array(descriptors.flatten().numpy())
    table = arrow.table(
        {
            "path": arrow.array(names, arrow.string()),
            "descriptor": arrow.FixedSizeListArray.from_arrays(values, descriptors.shape[1]),
        }
    )
    with replacing(path) as temporary:
        parquet.write_table(table.replace_schema_metadata({"model": model}), temporary)


def _require_pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ModuleNotFoundError(
            'Parquet needs pyarrow: pip install "sketchfusion-plugins[parquet]". '
            "Files ending in .jsonl or .safetensors need nothing more."
        ) from error
    return pyarrow


def _read_lines(lines: Iterable[bytes], path: Path, model: str) -> tuple[frozenset[str], int]:
    """Paths in a file, and where its last whole line ends."""
    known, end = set(), 0
    for number, line in enumerate(lines, 1):
        # A line that a crash cut off begins as ours do; anything else is not ours to cut.
        cut = not line.endswith(b"\n") and line[: len(LINE_START)] == LINE_START[: len(line)]
        try:
            row = json.loads(line)
            name, found = row["path"], row["model"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if cut and isinstance(error, ValueError):
                break
            raise ValueError(
                f"{path}, line {number} is no descriptor of ours: {error!r}. Choose another file."
            ) from error
        if found != model:
            raise ValueError(
                f"{path}, line {number} was made by the model {found}, this is {model}. "
                "Choose another file, or delete it."
            )
        # Lines of versions that did not write it are taken for this folder's.
        folder = row.get("folder")
        if folder is not None and folder != str(Path.cwd()):
            raise ValueError(
                f"{path}, line {number} names {name!r} relative to {folder}, you are in "
                f"{Path.cwd()}. Run the command there, or choose another file."
            )
        if cut:
            break
        known.add(str(name))
        end += len(line)
    return frozenset(known), end
