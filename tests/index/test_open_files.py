"""Indexes of more shards than a process may have files open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("faiss")
pytest.importorskip("resource")  # Windows has none

# A process of its own: its limit stays.
COMMON = """
import os, resource, sys
from pathlib import Path
import numpy as np
from sketchfusion_plugins.index import IndexWriter, SketchIndex, approximation, writer
from sketchfusion_plugins.index.manifest import Manifest
from sketchfusion_plugins.index.merging import merge_indexes

folder, kind, shards, limit = Path(sys.argv[1]), sys.argv[2], 150, 64
writer.LARGEST_MERGED_ROWS = 1  # as vectors of 20,480 numbers are: no shard is merged with another
approximation.MINIMUM_ROWS = 200

def build(name, seed, keys):
    vectors = np.random.default_rng(seed).normal(size=(2 * shards, 8)).astype(np.float32)
    with IndexWriter.create(folder / name, 8, kind, "m") as index:
        for row in range(0, len(vectors), 2):
            index.add(vectors[row : row + 2], [f"{keys}{row}", f"{row + 1}"])
            index.commit()
    assert len(index.manifest.shards) == shards
    return vectors
"""

FEW = (
    COMMON
    + """
vectors = build("a", 1, "a")
build("b", 2, "b")
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
held = len(os.listdir("/dev/fd"))
index = SketchIndex.open(folder / "a")
assert len(os.listdir("/dev/fd")) <= held + 1, "one for the structure"
assert [hits[0].key for hits in index.search(vectors[:4], 3, effort=999)] == ["a0", "1", "a2", "3"]
assert [key for key, _ in index.items()][-2:] == ["a298", "299"]
index.verify()
# Every second key is in both, so that no shard is copied as it is.
merged = merge_indexes([folder / "a", folder / "b"], folder / "merged")
assert (merged.rows, len(merged.duplicates)) == (450, 150)
with IndexWriter.open(folder / "merged") as index:
    index.add(np.ones((300, 8)), [f"new{row}" for row in range(300)])
assert len(SketchIndex.open(folder / "merged")) == 750
"""
)

NONE_LEFT = (
    COMMON
    + """
build("a", 1, "a")
manifest = Manifest.read(folder / "a")
SketchIndex(folder / "a", manifest)
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
taken = []
try:
    while True:
        taken.append(open(os.devnull))
except OSError:
    pass
try:
    SketchIndex(folder / "a", manifest)
except OSError as error:
    found = error
for file in taken:
    file.close()
assert "Too many open files" in str(found) and "damaged" not in str(found), found
"""
)


def _run(script: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_any_number_of_shards_is_searched_merged_and_extended(kind: str, tmp_path: Path) -> None:
    _run(FEW, str(tmp_path), kind)


def test_an_exhausted_process_is_no_damaged_index(tmp_path: Path) -> None:
    _run(NONE_LEFT, str(tmp_path), "flat")
