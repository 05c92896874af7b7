"""Tensors on disk by key: one safetensors file per record, in 256 folders.

Plain files, since every other store gives up something that matters here. A file appears whole by
one rename, so readers and writers in threads and processes, on network drives too, wait for nobody;
two that write one key write the same. LMDB lets one process write at a time, reserves its size,
does not evict and must not lie on a network drive; diskcache pickles and writes to its database at
every read.
"""

from __future__ import annotations

import errno
import json
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from sketchfusion_plugins.files import UNFINISHED, remove_unfinished, write_safetensors

GIBIBYTE = 2**30
SMALLEST_LIMIT = 2**20
# Share of the limit that may be written before files are counted again: others write too.
COUNTED_AFTER = 1 / 16
# Share of the limit that is left when the oldest records are deleted.
KEPT = 7 / 8
KEY = re.compile("[0-9a-f]{64}")
SUFFIX = ".safetensors"


class FeatureStore:
    """A folder of records, safe under readers and writers in any number of threads and processes.

    A record that does not pass its checksum counts as missing, is deleted and reported. What cannot
    be read is missing, and a folder that cannot be written to is read only; each is reported once.

    Where the limit is reached, records are deleted that were not used since this object first found
    or wrote one, the longest unused first. Those that were used since stay, and nothing new is
    kept, which is reported once: pictures that are visited in turn would else push each other out,
    and none would ever be found. Another object, as the next run has, lets them go. Several
    processes that write can exceed the limit, each by a sixteenth of it, until they count the files
    again.

    Args:
        folder: Folder of the records; made if there is none. Copies and unpickled stores, which may
            never write, wait with that until they do.
        limit: Bytes that records may take, 1 MiB or more.

    Raises:
        OSError: The folder cannot be made.
        ValueError: The limit is too small.

    Attributes:
        hits: Records that this object has found.
        misses: Records that it was asked for and has not found.

    Example:
        >>> store = FeatureStore("features.cache", limit=100 * 2**30)  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, limit: int = 20 * GIBIBYTE) -> None:
        if limit < SMALLEST_LIMIT:
            raise ValueError(
                f"expected a limit of at least {SMALLEST_LIMIT} bytes, got {limit}. 1 GiB is "
                f"{GIBIBYTE}."
            )
        self._begin(Path(folder).expanduser().absolute(), limit)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _begin(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.hits = self.misses = 0
        self._lock = Lock()
        self._size: int | None = None
        self._wanted = 0
        self._full = False
        # In the drive's own time, which may be another machine's.
        self._first_use: int | None = None
        self._told: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and other processes share the folder, not the counts.
        return _reopen, (str(self.folder), self.limit)

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of a key, on the CPU; None if there are none.

        Raises:
            ValueError: No key.
        """
        path = self._path(key)
        tensors = self._read(path, key)
        with self._lock:
            self.hits += tensors is not None
            self.misses += tensors is None
        if tensors is not None:
            # The time of modification is that of the last use. Others may own or delete the file.
            with suppress(OSError):
                os.utime(path)
                if self._first_use is None:
                    self._note_use(path.stat().st_mtime_ns)
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a key that tells all they depend on; one that is there stays.

        Where they cannot be written, or the store is full, a warning says so once.

        Raises:
            ValueError: No key.
        """
        path = self._path(key)
        try:
            if path.exists() or not self._has_room(sum(value.nbytes for value in tensors.values())):
                return
            values = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            write_safetensors(values, path, {"record": _stamp(key, values)}, durable=False)
            self._note_use(path.stat().st_mtime_ns)
        except FileNotFoundError:
            # Evicted at once, or its folder by someone who cleared the cache.
            return
        except OSError as error:
            self._tell("write", f"{self.folder} keeps nothing more: {error}")

    def size(self) -> int:
        """Bytes that the records take now."""
        return sum(size for _, size, _ in self._records())

    def __len__(self) -> int:
        return sum(1 for _ in self._records())

    def _path(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise ValueError(f"expected a key of 64 hexadecimal digits, got {key!r}.")
        return self.folder / key[:2] / (key[2:] + SUFFIX)

    def _note_use(self, time: int) -> None:
        with self._lock:
            self._first_use = time if self._first_use is None else self._first_use

    def _tell(self, what: str, message: str) -> None:
        """Warn, once of a kind."""
        if what not in self._told:
            self._told.add(what)
            warnings.warn(message, stacklevel=3)

    def _has_room(self, size: int) -> bool:
        """Whether some bytes may be written, for which records are deleted if need be."""
        if size > self.limit:
            self._tell(
                "large",
                f"{self.folder} keeps no record of {size} bytes, which is more than its limit of "
                f"{self.limit}. Give it a larger limit: FeatureStore(folder, limit=BYTES).",
            )
            return False
        with self._lock:
            self._wanted += size
            known = self._size is not None and (
                self._full or self._size + self._wanted <= self.limit
            )
            # A full store too is counted again from time to time: others may have cleared it.
            if not known or self._wanted > self.limit * COUNTED_AFTER:
                self._size, self._wanted = self._evict(size), size
                self._full = self._size + size > self.limit
            full = self._full
        if full:
            self._tell(
                "full",
                f"{self.folder} is full: what this run used fills its limit of "
                f"{self.limit / GIBIBYTE:.4g} GiB. Nothing more is kept, and the rest is computed "
                "at every visit. Raise the limit (--cache-limit GIB, or FeatureStore(folder, "
                "limit=BYTES)).",
            )
        return not full

    def _evict(self, room: int) -> int:
        """Delete what is too much, with some bytes to come. Processes need not agree.

        Several at once delete the same files, since all see the same times.

        Returns:
            Bytes that are left.
        """
        records = sorted(self._records(clean=True))
        total = sum(size for _, size, _ in records)
        if total + room > self.limit:
            since = self._first_use
            old = sum(since is None or time < since for time, _, _ in records)
            for _, size, path in records[:old]:
                if total + room <= self.limit * KEPT:
                    break
                total -= _delete(path, size)
            # What several processes wrote before they counted.
            for _, size, path in reversed(records[old:]):
                if total <= self.limit:
                    break
                total -= _delete(path, size)
        return total

    def _records(self, clean: bool = False) -> Iterator[tuple[int, int, str]]:
        """Time of last use in nanoseconds, size and path of every record.

        Args:
            clean: Delete what killed processes left unfinished.
        """
        for number in range(256):
            folder = self.folder / f"{number:02x}"
            try:
                entries = list(os.scandir(folder))
            except FileNotFoundError:
                continue
            except OSError as error:
                self._tell("read", f"{folder} cannot be read and is left alone: {error}")
                continue
            if clean and any(entry.name.endswith(UNFINISHED) for entry in entries):
                with suppress(OSError):
                    remove_unfinished(folder)
            for entry in entries:
                if entry.name.endswith(SUFFIX):
                    with suppress(OSError):
                        status = entry.stat()
                        yield status.st_mtime_ns, status.st_size, entry.path

    def _read(self, path: Path, key: str) -> dict[str, Tensor] | None:
        """A record; None if it is missing, or damaged, which is reported."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            # Not mapped: a file that is cut short meanwhile, or that another machine deletes from a
            # network drive, would end the process.
            data = path.read_bytes()
            tensors = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            if header.get("__metadata__", {}).get("record") != _stamp(key, tensors):
                raise ValueError("it does not fit its checksum")
            return tensors
        # KeyError: of a precision that safetensors writes and does not read.
        except (KeyError, SafetensorError, ValueError) as error:
            warnings.warn(f"{path} is damaged and is made anew: {error}", stacklevel=3)
            with suppress(OSError):
                path.unlink()
        except OSError as error:
            # Too many open files, say: nothing is known of the record.
            if error.errno != errno.ENOENT:
                self._tell("read", f"{path} cannot be read and is made anew: {error}")
        return None


def _reopen(folder: str, limit: int) -> FeatureStore:
    """A store whose folder need not be there: it may be another machine's."""
    store = FeatureStore.__new__(FeatureStore)
    store._begin(Path(folder), limit)
    return store


def _delete(path: str, size: int) -> int:
    """The size of a file that is gone now, or that somebody else deletes."""
    with suppress(OSError):
        Path(path).unlink()
    return size


def _stamp(key: str, tensors: Mapping[str, Tensor]) -> str:
    """Key and checksum in one, as the order of several entries would differ from file to file."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor_bytes(tensor), value)
    return f"{key} crc32:{value:08x}"


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's values as they lie in memory, of any precision."""
    values = tensor.detach().cpu().contiguous().flatten()
    return values.view(torch.uint8).numpy().data
