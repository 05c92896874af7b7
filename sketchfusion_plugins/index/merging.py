"""Indexes of several machines as one, and indexes that can be merged without coding anew.

Shards are copied as they are, and inverted lists that were learned together are joined by FAISS's
own ``merge_into``. Everything else is added to the largest index's structure.
"""

from __future__ import annotations

import operator
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sketchfusion_plugins.files import remove_unfinished, replacing, write_safetensors
from sketchfusion_plugins.index.approximation import (
    RETRAIN_GROWTH,
    extend,
    has_lists,
    is_due,
    join_lists,
    new_structure,
    read_structure,
    same_lists,
    write_structure,
)
from sketchfusion_plugins.index.manifest import (
    POINTER,
    Approximation,
    Manifest,
    Shard,
    StoredFile,
    damaged,
    remove_data,
    tell_apart,
)
from sketchfusion_plugins.index.reader import SketchIndex
from sketchfusion_plugins.index.rows import read_blocks, sample_vectors
from sketchfusion_plugins.index.writer import LOCK


class Merged(NamedTuple):
    """What a merge gave.

    Attributes:
        rows: Vectors in the merged index.
        duplicates: Keys that more than one index holds; the vector kept is that of the index with
            the larger structure, or else of the one named first.
    """

    rows: int
    duplicates: tuple[str, ...]


def merge_indexes(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    strict: bool = False,
    progress: bool = False,
    same_model: Callable[[str, str], bool] = operator.eq,
) -> Merged:
    """Write one index with the vectors, keys and metadata of several.

    Sources are read only. The result appears at once when all of it is there; a merge that was
    killed is run again. A structure takes memory while it is made; vectors do not.

    Args:
        sources: Index folders of the same model, width and kind.
        out: Folder that holds no index yet.
        strict: Refuse keys that more than one index holds, instead of keeping the first.
        progress: Show a progress bar while vectors are added to a structure.
        same_model: Whether two fingerprints are of one model, where that is more than equality.

    Raises:
        FileNotFoundError: A source holds no index.
        FileExistsError: ``out`` holds one.
        ValueError: Fewer than two sources, one named twice, or sources that do not fit together.
        OSError: A source is damaged, or was changed meanwhile.
    """
    out = Path(out)
    readers = [SketchIndex.open(folder) for folder in sources]
    _check_sources(readers, same_model)
    seen: set[str] = set()
    duplicates: list[str] = []
    # The largest structure comes first: rows that it covers must be the first rows.
    readers.sort(key=lambda reader: -_covered(reader.manifest))
    kept = []
    for reader in readers:
        keys = [key for key, _ in reader.items()]
        fresh = np.array([key not in seen for key in keys], dtype=bool)
        duplicates += [key for key, new in zip(keys, fresh, strict=True) if not new]
        seen.update(keys)
        kept.append(fresh)
    if strict and duplicates:
        raise ValueError(
            f"{len(duplicates)} key(s) are in more than one index: {', '.join(duplicates[:5])}"
            f"{' ...' if len(duplicates) > 5 else ''}. Merge without strict to keep the first."
        )
    with _new_folder(out):
        shards: list[Shard] = []
        for reader, fresh in zip(readers, kept, strict=True):
            shards += _copy_shards(reader, fresh, out, len(shards) + 1)
        first = readers[0].manifest
        manifest = Manifest(first.dim, first.kind, first.model, len(shards) + 1, tuple(shards))
        rows = [int(fresh.sum()) for fresh in kept]
        manifest = _with_structure(manifest, readers, rows, out, progress)
        manifest.write(out)
    return Merged(manifest.rows, tuple(duplicates))


def begin_like(source: str | Path, out: str | Path) -> None:
    """Make an empty index that shares another one's model, kind and learned lists.

    Both can be extended apart, on different machines, and be merged without coding a vector anew.

    Raises:
        FileNotFoundError: The source holds no index.
        FileExistsError: ``out`` holds one.
        ValueError: The source has no learned lists: it is of another kind, or too small.
        OSError: It is damaged.
    """
    source, out = Path(source), Path(out)
    manifest = SketchIndex.open(source).manifest
    former = manifest.approximation
    if former is None or not has_lists(manifest.kind):
        raise ValueError(
            f"the index {source} of kind {manifest.kind} with {manifest.rows} rows has learned no "
            "lists. Indexes of kind ivf and ivfpq have them from 10,000 rows on; others need none "
            "to be merged."
        )
    former.file.verify(source)
    structure = read_structure(source / former.file.name, mapped=False)
    structure.reset()
    with _new_folder(out):
        path = out / "approximation-000001.faiss"
        write_structure(structure, path)
        empty = Approximation(StoredFile.of(path), 0, former.trained_rows)
        replace(manifest, generation=1, shards=(), approximation=empty).write(out)


@contextmanager
def _new_folder(out: Path) -> Iterator[None]:
    """A folder that gets an index, locked as by a writer."""
    from filelock import FileLock, Timeout

    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / LOCK, timeout=0):
            if (out / POINTER).exists():
                raise FileExistsError(f"{out} holds an index already. Choose another folder.")
            remove_unfinished(out)
            try:
                yield
            except BaseException:
                # Without a pointer nobody reads what was copied, and it may be large.
                if not (out / POINTER).exists():
                    remove_data(out)
                raise
    except Timeout as error:
        raise BlockingIOError(f"another process is writing {out}. Wait until it ends.") from error


def _check_sources(readers: Sequence[SketchIndex], same_model: Callable[[str, str], bool]) -> None:
    folders = [reader.folder.resolve() for reader in readers]
    if len(readers) < 2 or len(set(folders)) < len(folders):
        raise ValueError(
            "expected at least two different indexes to merge, got "
            f"{', '.join(str(reader.folder) for reader in readers) or 'none'}."
        )
    # All pairs: one that does not say everything may be the same as two that differ.
    for first, reader in combinations(readers, 2):
        if not same_model(first.manifest.model, reader.manifest.model):
            found, expected = tell_apart(reader.manifest.model, first.manifest.model)
            raise ValueError(
                f"{reader.folder} was built with the model {found}, {first.folder} with {expected}."
                " Vectors of different models cannot be compared: build one of the indexes anew "
                "with the other's model."
            )
        for name in ("dim", "kind"):
            found, expected = getattr(reader.manifest, name), getattr(first.manifest, name)
            if found != expected:
                raise ValueError(
                    f"{reader.folder} has {name} {found}, {first.folder} has {expected}. Only "
                    "indexes that were built alike can be merged."
                )


def _covered(manifest: Manifest) -> int:
    return manifest.approximation.rows if manifest.approximation else 0


def _copy_shards(
    reader: SketchIndex, fresh: np.ndarray[Any, np.dtype[np.bool_]], out: Path, number: int
) -> Iterator[Shard]:
    """Shards of an index under new numbers, without the rows that are not fresh."""
    start = 0
    for shard in reader.manifest.shards:
        rows = fresh[start : start + shard.rows]
        start += shard.rows
        if not rows.any():
            continue
        vectors = out / f"vectors-{number:06d}.safetensors"
        items = out / f"items-{number:06d}.jsonl"
        if rows.all():
            yield Shard(
                _copy(reader.folder, shard.vectors, vectors),
                _copy(reader.folder, shard.items, items),
                shard.rows,
            )
        else:
            # What is rewritten gets a new checksum, which must not bless a damaged file.
            shard.vectors.verify(reader.folder)
            shard.items.verify(reader.folder)
            (found,) = SketchIndex(
                reader.folder, replace(reader.manifest, shards=(shard,), approximation=None)
            ).vectors()
            text = (reader.folder / shard.items.name).read_bytes().splitlines(keepends=True)
            lines = [line for line, new in zip(text, rows, strict=True) if new]
            with replacing(items) as temporary:
                temporary.write_bytes(b"".join(lines))
            offsets = np.cumsum([0, *map(len, lines)], dtype=np.int64)
            tensors = {"vectors": found[rows], "offsets": offsets}
            write_safetensors({k: torch.from_numpy(v) for k, v in tensors.items()}, vectors)
            yield Shard(StoredFile.of(vectors), StoredFile.of(items), int(rows.sum()))
        number += 1


def _copy(folder: Path, file: StoredFile, path: Path) -> StoredFile:
    """Copy a data file and hold the copy against its checksum."""
    try:
        with replacing(path) as temporary:
            shutil.copyfile(folder / file.name, temporary)
    except FileNotFoundError as error:
        raise OSError(f"the index {folder} was changed meanwhile. Merge again.") from error
    copied = StoredFile.of(path)
    if copied.sha256 != file.sha256:
        raise damaged(folder, f"{file.name} does not have the SHA-256 it was written with")
    return copied


def _with_structure(
    manifest: Manifest,
    readers: Sequence[SketchIndex],
    rows: Sequence[int],
    out: Path,
    progress: bool,
) -> Manifest:
    """The manifest with a structure, made of the sources' own as far as they fit together."""
    kind, former = manifest.kind, readers[0].manifest.approximation
    covered = former.rows if former else 0
    if former is None and not is_due(kind, manifest.rows, 0):
        return manifest
    path = out / f"approximation-{manifest.generation:06d}.faiss"
    merged = SketchIndex(out, manifest)
    if former is not None and not is_due(kind, manifest.rows, covered):
        file = _copy(readers[0].folder, former.file, path)
        return replace(manifest, approximation=replace(former, file=file))
    structure, trained, shared = None, manifest.rows, [False] * len(readers)
    if former is not None:
        structure, trained = _read(readers[0]), former.trained_rows
        shared = [
            count == len(reader) and has_lists(kind) and _shares(structure, reader)
            for reader, count in zip(readers, rows, strict=True)
        ]
        if has_lists(kind) and not all(shared) and manifest.rows > RETRAIN_GROWTH * trained:
            structure, trained, shared = None, manifest.rows, [False] * len(readers)
    if structure is None:
        sample = sample_vectors(merged) if has_lists(kind) else None
        structure = new_structure(kind, manifest.dim, sample, manifest.rows)
    start = 0
    for reader, count, joins in zip(readers, rows, shared, strict=True):
        if start and joins and _covered(reader.manifest):
            extend(structure, _until(merged, structure.ntotal, start, progress))
            join_lists(structure, _read(reader))
        start += count
    extend(structure, read_blocks(merged, structure.ntotal, progress))
    write_structure(structure, path)
    return replace(
        manifest, approximation=Approximation(StoredFile.of(path), manifest.rows, trained)
    )


def _read(reader: SketchIndex) -> Any:
    former = reader.manifest.approximation
    assert former is not None
    former.file.verify(reader.folder)
    return read_structure(reader.folder / former.file.name, mapped=False)


def _shares(structure: Any, reader: SketchIndex) -> bool:
    """Whether an index learned the same lists, or has no structure that could differ."""
    former = reader.manifest.approximation
    if former is None:
        return True
    return same_lists(structure, read_structure(reader.folder / former.file.name, mapped=True))


def _until(merged: SketchIndex, first: int, end: int, progress: bool) -> Iterator[Any]:
    """Vectors of the rows from ``first`` to ``end``."""
    left = end - first
    for block in read_blocks(merged, first, progress) if left else ():
        yield block[:left]
        left -= len(block)
        if left <= 0:
            return
