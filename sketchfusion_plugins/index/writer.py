"""Extending an index folder: one writer at a time, nothing committed is ever lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sketchfusion_plugins.files import remove_unfinished, replacing, write_safetensors
from sketchfusion_plugins.index.approximation import (
    RETRAIN_GROWTH,
    extend,
    has_lists,
    is_due,
    new_structure,
    read_structure,
    write_structure,
)
from sketchfusion_plugins.index.manifest import (
    POINTER,
    Approximation,
    Kind,
    Manifest,
    Shard,
    StoredFile,
    remove_data,
)
from sketchfusion_plugins.index.reader import SketchIndex, unit_vectors
from sketchfusion_plugins.index.rows import read_blocks, sample_vectors

if TYPE_CHECKING:
    from filelock import FileLock

LOCK = "write.lock"
# Shards are merged like the digits of a counter, in memory, up to so many bytes of vectors; and up
# to so many rows, whose texts narrow vectors leave uncounted.
LARGEST_MERGED_BYTES = 2**28
LARGEST_MERGED_ROWS = 2**18


class IndexWriter:
    """Adds vectors to an index; a context manager that commits at its end.

    ``add`` only collects; ``commit`` makes everything collected durable at once, or nothing. A
    commit writes the new rows, now and then with some former ones: of n rows each is rewritten
    log2(n) times at most, and no more than 256 MiB of vectors at once. FAISS's structures are
    extended when a tenth more rows (at least 10,000) has come; until then the new rows, and small
    indexes altogether, are searched exactly.

    Leaving the block by an error discards what was not committed. Locks are the operating system's
    and end with the process.

    Args: use `create` or `open`.
    """

    def __init__(self, folder: Path, manifest: Manifest | None) -> None:
        self.folder = folder
        self._lock = _lock(folder)
        try:
            if manifest is not None:
                if (folder / POINTER).exists():
                    raise FileExistsError(
                        f"{folder} holds an index already. IndexWriter.open extends it."
                    )
                manifest.write(folder)
            # Only now: another writer may have committed before the lock was got.
            self.manifest = Manifest.read(folder)
            self._remove_unnamed()
            self._keys = {key for key, _ in SketchIndex(folder, self.manifest).items()}
        except BaseException:
            self._lock.release()
            raise
        self._vectors: list[npt.NDArray[np.float32]] = []
        self._lines: list[bytes] = []
        self._added: set[str] = set()

    @classmethod
    def create(
        cls, folder: str | Path, dim: int, kind: Kind = "flat", model: str = ""
    ) -> IndexWriter:
        """Make an empty index.

        Args:
            folder: Folder that holds no index yet.
            dim: Width of the vectors.
            kind: ``"flat"`` searches everything; ``"ivf"`` and ``"hnsw"`` are for more than some
                hundred thousand vectors, ``"ivfpq"``, which needs a sixteenth of their memory, for
                many millions. HNSW answers faster and builds slower.
            model: Fingerprint of the model that makes the vectors.

        Raises:
            FileExistsError: The folder holds an index.
            ValueError: Unknown kind or no dimension.
            OSError: The folder cannot be written to.
        """
        manifest = Manifest(dim, kind, model)
        Path(folder).mkdir(parents=True, exist_ok=True)
        return cls(Path(folder), manifest)

    @classmethod
    def open(cls, folder: str | Path, model: str | None = None) -> IndexWriter:
        """Open an index to extend it, and remove what an interrupted writer left.

        Raises:
            FileNotFoundError: The folder holds no index.
            BlockingIOError: Another writer has it open.
            ValueError: The index was built with another model.
            OSError: The index is damaged.
        """
        folder = Path(folder)
        Manifest.read(folder).check_model(folder, model)
        return cls(folder, None)

    @property
    def pending(self) -> int:
        """Vectors that were added since the last commit."""
        return len(self._added)

    def __len__(self) -> int:
        """Vectors, those not committed included."""
        return len(self._keys) + len(self._added)

    def __contains__(self, key: str) -> bool:
        return key in self._keys or key in self._added

    def add(
        self,
        vectors: Tensor | npt.NDArray[Any],
        keys: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Collect vectors for the next commit.

        A key names one vector for good: adding a known one is an error, so a gallery is extended by
        asking ``key in writer`` first and rebuilt into a new folder when its pictures changed.

        Args:
            vectors: ``[N, dim]`` of any length but 0; stored with length 1.
            keys: N texts, such as paths; none may be in the index already.
            metadata: N mappings that JSON can hold; empty ones unless given.

        Raises:
            ValueError: Wrong shapes or counts, empty or known keys, metadata that JSON cannot hold,
                or the writer is closed. Nothing of the call was collected.
        """
        self._check_open()
        unit = unit_vectors(vectors, self.manifest.dim)
        details: list[Mapping[str, Any]] = [{}] * len(keys) if metadata is None else list(metadata)
        if not len(unit) == len(keys) == len(details):
            raise ValueError(
                f"expected one key and one metadata mapping per vector, got {len(unit)} vectors, "
                f"{len(keys)} keys and {len(details)} mappings."
            )
        fresh: set[str] = set()
        lines = []
        for key, values in zip(keys, details, strict=True):
            if not isinstance(key, str) or not key:
                raise ValueError(f"expected keys that are texts and not empty, got {key!r}.")
            if key in self or key in fresh:
                raise ValueError(
                    f"the key {key!r} is in the index already. "
                    "Skip known keys with `key in writer`."
                )
            fresh.add(key)
            lines.append(_line(key, values))
        self._vectors.append(unit)
        self._lines += lines
        self._added |= fresh

    def commit(self, progress: bool = False) -> None:
        """Make everything collected durable and visible to those who open the index from now on.

        Args:
            progress: Show a progress bar while a structure is extended.

        Raises:
            OSError: The disk is full, or files to be merged are damaged; the former generation
                stands and nothing collected is forgotten.
            ValueError: The writer is closed.
        """
        self._check_open()
        if not self._added:
            return
        generation = self.manifest.generation + 1
        shards, merged = self._split_shards(len(self._added))
        shard = self._write_shard(merged, generation)
        manifest = replace(self.manifest, generation=generation, shards=(*shards, shard))
        manifest = self._with_approximation(manifest, progress)
        manifest.write(self.folder)
        self.manifest = manifest
        self._keys |= self._added
        self._vectors, self._lines, self._added = [], [], set()
        self._remove_unnamed()

    def close(self) -> None:
        """Let other writers in; what was not committed is forgotten."""
        self._lock.release()

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.close()

    def _check_open(self) -> None:
        if not self._lock.is_locked:
            raise ValueError(f"this writer of {self.folder} is closed. IndexWriter.open makes one.")

    def _split_shards(self, rows: int) -> tuple[tuple[Shard, ...], tuple[Shard, ...]]:
        """Shards to keep, and trailing ones no larger than what would be merged with them."""
        shards = self.manifest.shards
        kept = len(shards)
        most = min(LARGEST_MERGED_ROWS, LARGEST_MERGED_BYTES // (4 * self.manifest.dim))
        while kept and shards[kept - 1].rows <= min(rows, most - rows):
            kept -= 1
            rows += shards[kept].rows
        return shards[:kept], shards[kept:]

    def _write_shard(self, merged: tuple[Shard, ...], generation: int) -> Shard:
        """Write the merged shards' rows and the collected ones as one shard."""
        for shard in merged:
            # What is rewritten gets a new checksum, which must not bless a damaged file.
            shard.vectors.verify(self.folder)
            shard.items.verify(self.folder)
        former = SketchIndex(self.folder, replace(self.manifest, shards=merged, approximation=None))
        vectors = np.concatenate([*former.vectors(), *self._vectors])
        texts = [(self.folder / shard.items.name).read_bytes() for shard in merged]
        lines = [line for text in texts for line in text.splitlines(keepends=True)] + self._lines
        offsets = np.cumsum([0, *map(len, lines)], dtype=np.int64)

        items = self.folder / f"items-{generation:06d}.jsonl"
        with replacing(items) as temporary:
            temporary.write_bytes(b"".join(lines))
        path = self.folder / f"vectors-{generation:06d}.safetensors"
        tensors = {"vectors": torch.from_numpy(vectors), "offsets": torch.from_numpy(offsets)}
        write_safetensors(tensors, path)
        return Shard(StoredFile.of(path), StoredFile.of(items), len(vectors))

    def _with_approximation(self, manifest: Manifest, progress: bool) -> Manifest:
        """The manifest with a structure that covers all rows, if one is due."""
        former = manifest.approximation
        covered = former.rows if former else 0
        if not is_due(manifest.kind, manifest.rows, covered):
            return manifest
        reader = SketchIndex(self.folder, manifest)
        trained = manifest.rows
        if former is None or (
            has_lists(manifest.kind) and manifest.rows > RETRAIN_GROWTH * former.trained_rows
        ):
            covered = 0
            sample = sample_vectors(reader) if has_lists(manifest.kind) else None
            structure = new_structure(manifest.kind, manifest.dim, sample, manifest.rows)
        else:
            former.file.verify(self.folder)
            structure = read_structure(self.folder / former.file.name, mapped=False)
            trained = former.trained_rows
        extend(structure, read_blocks(reader, covered, progress))
        path = self.folder / f"approximation-{manifest.generation:06d}.faiss"
        write_structure(structure, path)
        return replace(
            manifest, approximation=Approximation(StoredFile.of(path), manifest.rows, trained)
        )

    def _remove_unnamed(self) -> None:
        """Remove former generations' files and what interrupted writers left."""
        remove_unfinished(self.folder)
        named = {file.name for file in self.manifest.files}
        remove_data(self.folder, named)


def discard_index(folder: Path) -> None:
    """Remove an index from a folder, unless somebody writes to it; who has it open may search on.

    Raises:
        BlockingIOError: Another writer has it open.
        OSError: It cannot be removed.
    """
    if not folder.exists():
        return
    lock = _lock(folder)
    try:
        # First: what an interruption leaves is then no index, and removed by the next writer.
        (folder / POINTER).unlink(missing_ok=True)
        remove_data(folder)
    finally:
        lock.release()


def _lock(folder: Path) -> FileLock:
    """The lock of an index' only writer, acquired."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(
            f"another writer has the index {folder} open. Wait until it is closed; searching "
            "needs no writer."
        ) from error
    return lock


def _line(key: str, metadata: Mapping[str, Any]) -> bytes:
    try:
        # ASCII, because some Unicode line breaks would stay as they are and end a line elsewhere.
        text = json.dumps({"key": key, "metadata": dict(metadata)}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata of {key!r} cannot be written as JSON: {error}.") from error
    return text.encode() + b"\n"
