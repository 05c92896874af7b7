"""Searching an index folder, read-only."""

from __future__ import annotations

import errno
import json
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sketchfusion_plugins.index.approximation import (
    RESCORED,
    read_structure,
    require_faiss,
    search_structure,
)
from sketchfusion_plugins.index.manifest import Manifest, Shard, damaged


class Hit(NamedTuple):
    """An item that was found.

    Attributes:
        key: Its key.
        score: Cosine similarity, -1..1.
        metadata: What was stored with it.
    """

    key: str
    score: float
    metadata: dict[str, Any]


class SketchIndex:
    """One generation of an index, mapped into memory.

    Opening takes milliseconds whatever the size, and leaves no file of the shards open however many
    there are. An open index keeps its generation, also while a writer commits new ones; open it
    again to see those. It may be searched from several threads.

    On a network drive that holds for writers on this machine. One on another machine removes the
    files of former generations from under those who read them, which ends a process: search a copy
    meanwhile.

    Args: use `open`.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        for file in manifest.files:
            file.check_size(folder)
        self.folder, self.manifest = folder, manifest
        self._shards = [_MappedShard(folder, shard, manifest.dim) for shard in manifest.shards]
        self._starts = np.cumsum([0, *(shard.rows for shard in manifest.shards)]).tolist()
        self._structure: Any = None
        self._covered = 0
        if manifest.approximation is not None:
            name = manifest.approximation.file.name
            self._structure = read_structure(folder / name, mapped=True)
            self._covered = manifest.approximation.rows
            if (self._structure.ntotal, self._structure.d) != (self._covered, manifest.dim):
                raise damaged(folder, f"{name} is of another index")

    @classmethod
    def open(cls, folder: str | Path, model: str | None = None) -> SketchIndex:
        """Open the present generation.

        Args:
            folder: An index folder.
            model: Fingerprint of the model that makes the queries; None skips the check.

        Raises:
            FileNotFoundError: The folder holds no index.
            OSError: The index is damaged. Sizes are checked here, contents by `verify`.
            ValueError: The index was built with another model.
            ImportError: FAISS is not installed.
        """
        folder = Path(folder)
        while True:
            manifest = Manifest.read(folder)
            manifest.check_model(folder, model)
            try:
                return cls(folder, manifest)
            except OSError as error:
                if not isinstance(error, FileNotFoundError) and error.errno != errno.ESTALE:
                    raise
                # A writer may have committed, and removed the former files, since the pointer was
                # read; the next generation is there.
                if Manifest.read(folder).generation == manifest.generation:
                    raise damaged(folder, f"{error.filename or error} is missing") from error

    def __len__(self) -> int:
        return int(self._starts[-1])

    def search(
        self,
        vectors: Tensor | npt.NDArray[Any],
        k: int = 10,
        effort: int | None = None,
    ) -> list[list[Hit]]:
        """The k most similar items of every query, best first.

        Args:
            vectors: Queries ``[Q, dim]`` of any length but 0.
            k: Items wanted; fewer come where the index holds or the approximate search finds fewer.
            effort: Lists probed (``"ivf"`` and ``"ivfpq"``: 32 unless given) or candidates kept
                (``"hnsw"``: 128). More finds more and takes longer; ``"flat"`` finds everything.

        Raises:
            ValueError: Queries of another width, not finite or zero, or k or effort below 1.
        """
        scores, rows = self.search_rows(vectors, k, effort)
        return [
            [
                Hit(key, float(score), metadata)
                for score, row in zip(*pair, strict=True)
                if row >= 0
                for key, metadata in [self.item(int(row))]
            ]
            for pair in zip(scores, rows, strict=True)
        ]

    def search_rows(
        self,
        vectors: Tensor | npt.NDArray[Any],
        k: int = 10,
        effort: int | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """`search` without keys: scores and row numbers, both ``[Q, min(k, len)]``.

        Row -1 stands where the approximate search found nothing more.
        """
        faiss = require_faiss()
        if k < 1 or (effort is not None and effort < 1):
            raise ValueError(f"expected k and effort of at least 1, got {k} and {effort}.")
        queries = unit_vectors(vectors, self.manifest.dim)
        k = min(k, len(self))
        scores = [np.empty((len(queries), 0), dtype=np.float32)]
        rows = [np.empty((len(queries), 0), dtype=np.int64)]
        if self._covered and len(queries):
            found = self._search_structure(queries, min(k, self._covered), effort)
            scores.append(found[0])
            rows.append(found[1])
        for start, block in self._blocks(self._covered) if len(queries) else ():
            best = min(k, len(block))
            found = faiss.knn(queries, block, best, metric=faiss.METRIC_INNER_PRODUCT)
            scores.append(found[0])
            rows.append(found[1] + start)
        all_scores, all_rows = np.concatenate(scores, axis=1), np.concatenate(rows, axis=1)
        order = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
        # Of unit vectors, but for rounding; without a row it is minus infinity.
        best_scores = np.minimum(np.take_along_axis(all_scores, order, 1), np.float32(1))
        return best_scores, np.take_along_axis(all_rows, order, 1)

    def item(self, row: int) -> tuple[str, dict[str, Any]]:
        """Key and metadata of a row.

        Raises:
            IndexError: No such row.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"expected a row of 0 to {len(self) - 1}, got {row}.")
        shard = bisect_right(self._starts, row) - 1
        return self._shards[shard].item(row - self._starts[shard])

    def items(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Keys and metadata of all rows in order."""
        for shard in self._shards:
            yield from (shard.item(row) for row in range(len(shard.vectors)))

    def vectors(self, first: int = 0) -> Iterator[npt.NDArray[np.float32]]:
        """Unit vectors from a row on, in blocks ``[n, dim]``; to be read only."""
        for _, block in self._blocks(first):
            yield block

    def verify(self) -> None:
        """Read every file and compare checksums: gigabytes take seconds.

        Raises:
            OSError: A file was changed or is gone.
        """
        for file in self.manifest.files:
            file.verify(self.folder)

    def _search_structure(
        self, queries: npt.NDArray[np.float32], k: int, effort: int | None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Scores and rows ``[Q, k]`` among those that the structure covers."""
        kind = self.manifest.kind
        if kind != "ivfpq":
            return search_structure(self._structure, kind, queries, k, effort)
        candidates = min(RESCORED * k, self._covered)
        _, rows = search_structure(self._structure, kind, queries, candidates, effort)
        scores = np.full(rows.shape, -np.inf, dtype=np.float32)
        for query, numbers, values in zip(queries, rows, scores, strict=True):
            there = numbers >= 0
            values[there] = self._rows(numbers[there]) @ query
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)

    def _rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Unit vectors ``[len(rows), dim]``."""
        found = np.empty((len(rows), self.manifest.dim), dtype=np.float32)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(shards):
            here = shards == number
            found[here] = self._shards[number].vectors[rows[here] - self._starts[number]]
        return found

    def _blocks(self, first: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        for start, shard in zip(self._starts, self._shards, strict=False):
            skipped = max(0, first - start)
            if skipped < len(shard.vectors):
                yield start + skipped, shard.vectors[skipped:]


class _MappedShard:
    """Vectors and lines of a shard, mapped into memory."""

    def __init__(self, folder: Path, shard: Shard, dim: int) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self.folder, self.name = folder, shard.items.name
        vectors, items = folder / shard.vectors.name, folder / shard.items.name
        try:
            tensors = load_file(vectors)
            self.vectors: npt.NDArray[np.float32] = tensors["vectors"].numpy()
            self.offsets: npt.NDArray[np.int64] = tensors["offsets"].numpy()
            # Python's mmap would keep the file open, and wide vectors make many shards.
            lines = torch.from_file(
                str(items), size=shard.items.size, dtype=torch.uint8, device="cpu"
            )
        except (SafetensorError, OSError, RuntimeError, KeyError) as error:
            # Neither library says in the system's words whether a file has gone, is forbidden, or
            # is one too many.
            for path in (vectors, items):
                path.open("rb").close()
            raise damaged(folder, f"{vectors.name} or {items.name}: {error}") from error
        self.lines = lines.numpy().data
        expected = ((shard.rows, dim), (shard.rows + 1,), shard.items.size)
        if (self.vectors.shape, self.offsets.shape, int(self.offsets[-1])) != expected:
            raise damaged(folder, f"{vectors.name} does not fit {items.name}")

    def item(self, row: int) -> tuple[str, dict[str, Any]]:
        line = bytes(self.lines[int(self.offsets[row]) : int(self.offsets[row + 1])])
        try:
            values = json.loads(line)
            return values["key"], values["metadata"]
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(self.folder, f"{self.name}, line {row + 1}: {error}") from error


def unit_vectors(vectors: Tensor | npt.NDArray[Any], dim: int) -> npt.NDArray[np.float32]:
    """Vectors ``[N, dim]`` as float32 of length 1.

    Raises:
        ValueError: Wrong shape, or a vector that is zero or not finite.
    """
    if isinstance(vectors, Tensor):
        vectors = vectors.detach().cpu().float().numpy()
    values = np.ascontiguousarray(vectors, dtype=np.float32)
    if values.ndim != 2 or values.shape[1] != dim:
        raise ValueError(f"expected vectors [N, {dim}], got {list(values.shape)}.")
    # Squares of large float32 values overflow; einsum casts without a copy of the whole.
    squares = np.einsum("nd,nd->n", values, values, dtype=np.float64)
    length = np.sqrt(squares).astype(np.float32)
    wrong = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} of {len(values)} vectors are zero or not finite, the first is row "
            f"{wrong[0]}. They have no direction to compare."
        )
    unit: npt.NDArray[np.float32] = values / length[:, None]
    return unit
