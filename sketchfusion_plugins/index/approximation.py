"""FAISS structures that find near vectors without looking at all of them.

Inverted files (``"ivf"``) and graphs (``"hnsw"``) keep the vectors as they are. Product
quantisation (``"ivfpq"``: Jegou et al., PAMI 2011) keeps a byte for every four numbers, and
the reader scores its best candidates anew. So scores are exact; what may be missed is an item.
Inner products of unit vectors are cosine similarities.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sketchfusion_plugins.files import replacing
from sketchfusion_plugins.index.manifest import Kind

# With fewer vectors an exact search takes milliseconds and k-means has too little to learn from.
MINIMUM_ROWS = 10_000
# Rows beyond the structure are searched exactly until they are this share of those in it.
TAIL_SHARE = 0.1
# Lists of an inverted file are learned anew when there are this many times the rows.
RETRAIN_GROWTH = 4

LISTS_PER_ROOT = 4  # FAISS's guidelines: 4 to 16 times the square root of the rows
TRAINING_ROWS_PER_LIST = 64
NUMBERS_PER_BYTE = 4
NEIGHBOURS = 32
CONSTRUCTION_CANDIDATES = 80
# Defaults of `search`, measured by examples/benchmarks/index_scale.py.
PROBED_LISTS = 32
SEARCH_CANDIDATES = 128
# Candidates of quantised vectors, per item wanted, whose scores are computed exactly.
RESCORED = 20


def require_faiss() -> Any:
    """The FAISS module.

    Raises:
        ImportError: It is not installed; says how to get it.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            'FAISS is needed for an index: pip install "sketchfusion-plugins[tasks]"'
        ) from error
    return faiss


def is_due(kind: Kind, rows: int, covered: int) -> bool:
    """Whether the structure should take up the rows it does not cover yet."""
    return kind != "flat" and rows - covered >= max(MINIMUM_ROWS, TAIL_SHARE * covered)


def training_rows(rows: int) -> int:
    """Rows of an even sample on which the lists for so many rows are learned."""
    return min(rows, list_count(rows) * TRAINING_ROWS_PER_LIST)


def list_count(rows: int) -> int:
    """Lists of an inverted file; FAISS wants at least 39 training rows for each."""
    return max(1, min(int(LISTS_PER_ROOT * rows**0.5), rows // 39))


def has_lists(kind: Kind) -> bool:
    """Whether a structure of this kind learns lists from a sample."""
    return kind in ("ivf", "ivfpq")


def new_structure(kind: Kind, dim: int, sample: npt.NDArray[np.float32] | None, rows: int) -> Any:
    """An empty FAISS structure for about ``rows`` vectors; lists are learned from the sample."""
    faiss = require_faiss()

    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dim, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = CONSTRUCTION_CANDIDATES
        return graph
    coding = f"PQ{code_bytes(dim)}" if kind == "ivfpq" else "Flat"
    lists = faiss.index_factory(dim, f"IVF{list_count(rows)},{coding}", faiss.METRIC_INNER_PRODUCT)
    lists.cp.spherical = True
    lists.train(sample)
    return lists


def code_bytes(dim: int) -> int:
    """Bytes that stand for a vector: about a byte for four numbers, and an even share for each."""
    return max(count for count in range(1, max(1, dim // NUMBERS_PER_BYTE) + 1) if dim % count == 0)


def extend(structure: Any, blocks: Iterable[npt.NDArray[np.float32]]) -> None:
    """Add vectors, block by block."""
    for block in blocks:
        structure.add(block)


def same_lists(one: Any, other: Any) -> bool:
    """Whether two inverted files learned the same lists, and codes if they have any."""
    faiss = require_faiss()

    def learned(structure: Any) -> list[npt.NDArray[np.float32]]:
        parts = [structure.quantizer.reconstruct_n(0, structure.quantizer.ntotal)]
        if hasattr(structure, "pq"):
            parts.append(faiss.vector_to_array(structure.pq.centroids))
        return parts

    pairs = zip(learned(one), learned(other), strict=False)
    return type(one) is type(other) and all(np.array_equal(*pair) for pair in pairs)


def join_lists(structure: Any, other: Any) -> None:
    """Move the vectors of an inverted file with the same lists behind those of another."""
    faiss = require_faiss()

    faiss.merge_into(structure, other, True)


def write_structure(structure: Any, path: Path) -> None:
    """Write a structure atomically.

    Raises:
        OSError: The file cannot be written.
    """
    faiss = require_faiss()

    with replacing(path) as temporary:
        try:
            faiss.write_index(structure, str(temporary))
        except RuntimeError as error:
            raise OSError(f"could not write {path}: {error}") from error


def read_structure(path: Path, mapped: bool) -> Any:
    """Read a structure; a mapped one takes memory only as it is searched and cannot be extended.

    Raises:
        FileNotFoundError: No such file.
        OSError: FAISS cannot read it.
    """
    faiss = require_faiss()

    flags = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY if mapped else 0
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        raise OSError(f"FAISS cannot read {path}: {error}") from error


def search_structure(
    structure: Any, kind: Kind, queries: npt.NDArray[np.float32], k: int, effort: int | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Scores and rows ``[Q, k]``, best first; row -1 where fewer were found.

    Scores of ``"ivfpq"`` are those of quantised vectors.
    """
    faiss = require_faiss()

    if has_lists(kind):
        options = faiss.SearchParametersIVF(nprobe=effort or PROBED_LISTS)
    else:
        options = faiss.SearchParametersHNSW(efSearch=max(effort or SEARCH_CANDIDATES, k))
    scores, rows = structure.search(queries, k, params=options)
    return scores, rows
