"""Vectors of an index, as structures are made of them: a sample to learn from, blocks to add."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from sketchfusion_plugins.index.approximation import training_rows
from sketchfusion_plugins.index.reader import SketchIndex


def sample_vectors(reader: SketchIndex) -> npt.NDArray[np.float32]:
    """Random rows to learn lists from; the same ones every time."""
    rows = np.random.default_rng(0).choice(len(reader), training_rows(len(reader)), replace=False)
    rows.sort()
    parts, start = [], 0
    for block in reader.vectors():
        inside = rows[(rows >= start) & (rows < start + len(block))]
        parts.append(block[inside - start])
        start += len(block)
    return np.concatenate(parts)


def read_blocks(
    reader: SketchIndex, first: int, progress: bool, size: int = 2**14
) -> Iterable[npt.NDArray[np.float32]]:
    """Vectors from a row on, in blocks small enough for a progress bar to move."""
    from tqdm import tqdm

    hidden = None if progress else True
    with tqdm(total=len(reader) - first, desc="indexing", unit="vector", disable=hidden) as bar:
        for vectors in reader.vectors(first):
            for start in range(0, len(vectors), size):
                block = vectors[start : start + size]
                yield block
                bar.update(len(block))
