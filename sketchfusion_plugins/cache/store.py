"""Tensors on disk by key: one safetensors file per record, in 256 folders.

Plain files, since every other store gives up something that matters here. A file appears whole by
one rename, so readers and writers in threads and processes, on network drives too, wait for nobody;
two that write one key write the same. LMDB lets one process write at a time, reserves its size,
does not evict and must not lie on a network drive; diskcache pickles and writes to its database at
every read.
"""

from __future__ import annotations

import errno
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

    A record that does not pass its checksum counts as missing, is deleted and reported. A folder
    that cannot be written to is read only. Beyond the limit, records that were used longest ago are
    deleted; until the files are counted again the folder can exceed the limit, by a sixteenth for
    every process that writes.

    Args:
        folder: Folder of the records; made if there is none.
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
        self.folder, self.limit = Path(folder).expanduser(), limit
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hits = self.misses = 0
        self._lock = Lock()
        self._size: int | None = None
        self._written = 0
        self._reported = False

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and other processes share the folder, not the counts.
        return FeatureStore, (self.folder, self.limit)

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of a key, on the CPU; None if there are none.

        Raises:
            ValueError: No key.
        """
        path = self._path(key)
        tensors = _read(path, key)
        with self._lock:
            self.hits += tensors is not None
            self.misses += tensors is None
        if tensors is not None:
            # The time of modification is that of the last use. Others may own or delete the file.
            with suppress(OSError):
                os.utime(path)
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a key that tells all they depend on; one that is there stays.

        Where they cannot be written, a warning says so once.

        Raises:
            ValueError: No key.
        """
        path = self._path(key)
        if path.exists():
            return
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            write_safetensors(tensors, path, {"record": _stamp(key, tensors)}, durable=False)
            size = path.stat().st_size
        except FileNotFoundError:
            # Evicted at once, or its folder by someone who cleared the cache.
            return
        except OSError as error:
            if not self._reported:
                self._reported = True
                warnings.warn(f"{self.folder} keeps nothing more: {error}", stacklevel=2)
            return
        with self._lock:
            self._written += size
            known = self._size is not None and self._size + self._written <= self.limit
            if not known or self._written > self.limit * COUNTED_AFTER:
                self._evict()

    def size(self) -> int:
        """Bytes that the records take now."""
        return sum(size for _, size, _ in self._records())

    def __len__(self) -> int:
        return sum(1 for _ in self._records())

    def _path(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise ValueError(f"expected a key of 64 hexadecimal digits, got {key!r}.")
        return self.folder / key[:2] / (key[2:] + SUFFIX)

    def _evict(self) -> None:
        """Count the files, and delete the oldest if there are too many. Processes need not agree.

        Several at once delete the same files, since all see the same times.
        """
        records = list(self._records(clean=True))
        total = sum(size for _, size, _ in records)
        if total > self.limit:
            for _, size, path in sorted(records):
                if total <= self.limit * KEPT:
                    break
                with suppress(OSError):
                    Path(path).unlink()
                total -= size
        self._size, self._written = total, 0

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
            if clean and any(entry.name.endswith(UNFINISHED) for entry in entries):
                remove_unfinished(folder)
            for entry in entries:
                if entry.name.endswith(SUFFIX):
                    with suppress(FileNotFoundError):
                        status = entry.stat()
                        yield status.st_mtime_ns, status.st_size, entry.path


def _read(path: Path, key: str) -> dict[str, Tensor] | None:
    """A record; None if it is missing, or damaged, which is reported."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            stamp = (file.metadata() or {}).get("record")
            # Copied: a mapped file that is cut short meanwhile would end the process.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if stamp != _stamp(key, tensors):
            raise ValueError("it does not fit its checksum")
        return tensors
    except FileNotFoundError:
        return None
    except (SafetensorError, ValueError) as error:
        warnings.warn(f"{path} is damaged and is made anew: {error}", stacklevel=3)
        with suppress(OSError):
            path.unlink()
    except (OSError, RuntimeError) as error:
        # safetensors opens a file twice, the second time through torch, and may find it evicted.
        if os.strerror(errno.ENOENT) in str(error):
            return None
        # Too many open files, say: nothing is known of the record.
        warnings.warn(f"{path} cannot be read and is made anew: {error}", stacklevel=3)
    return None


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
