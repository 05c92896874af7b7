"""Other processes: readers while a writer commits, and writers killed at every step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss")

from sketchfusion_plugins.index import IndexWriter, SketchIndex

DIM = 8
BATCH = 20
COMMITS = 15
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

COMMON = f"""
import os, sys, json
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import numpy as np
from pathlib import Path
from killing import Killer
from sketchfusion_plugins.index import IndexWriter, SketchIndex, approximation

folder = Path(sys.argv[1])
approximation.MINIMUM_ROWS = 50

def batch(number):
    return np.random.default_rng(number).normal(size=({BATCH}, {DIM})).astype("f4")

def add(writer, number):
    keys = [f"{{number}}/{{row}}" for row in range({BATCH})]
    writer.add(batch(number), keys, [{{"batch": number}}] * {BATCH})
    writer.commit()
"""

WRITE = (
    COMMON
    + f"""
import time

with IndexWriter.create(folder, {DIM}, "hnsw") as writer:
    for number in range({COMMITS}):
        add(writer, number)
        deadline = time.monotonic() + 300
        # A reader on a machine however slow finds every third generation too.
        while number % 3 == 0 and not folder.with_name(f"seen{{(number + 1) * {BATCH}}}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
"""
)

# Kills a fork of itself at its n-th file operation inside the folder, for every n there is.
KILL = (
    COMMON
    + f"""
with IndexWriter.create(folder, {DIM}, "ivf") as writer:
    for number in range(4):
        add(writer, number)
    child = os.fork()
    if child == 0:
        try:
            IndexWriter.open(folder)
        except BlockingIOError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7, "two writers"
step, committed, outcomes = 0, 4, []
while True:
    child = os.fork()
    if child == 0:
        sys.addaudithook(Killer(folder, step))
        with IndexWriter.open(folder) as writer:
            add(writer, committed)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    index = SketchIndex.open(folder)
    index.verify()
    assert len(index) in (committed * {BATCH}, (committed + 1) * {BATCH}), len(index)
    committed = len(index) // {BATCH}
    for number in range(committed):
        hits = index.search(batch(number)[:3], 1, effort=99)
        assert [hit[0].key for hit in hits] == [f"{{number}}/{{row}}" for row in range(3)], hits
    outcomes.append([os.WIFSIGNALED(status), committed])
    if not os.WIFSIGNALED(status):
        break
    step += 1
print(json.dumps(outcomes))
"""
)

# Kills a merge at its n-th file operation inside the result, and merges again after every kill.
MERGE = (
    COMMON
    + f"""
from sketchfusion_plugins.index.merging import merge_indexes

parts = [folder / "first", folder / "second"]
for part in range(2):
    with IndexWriter.create(parts[part], {DIM}, "ivf") as writer:
        for number in range(2 * part, 2 * part + 4):  # batches 2 and 3 are in both
            add(writer, number)
out, step, outcomes = folder / "merged", 0, []
while True:
    child = os.fork()
    if child == 0:
        sys.addaudithook(Killer(out, step))
        merge_indexes(parts, out)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    there = (out / "current.json").exists()
    if there:
        index = SketchIndex.open(out)
        index.verify()
        assert len(index) == 6 * {BATCH}, len(index)
        for number in range(6):
            hits = index.search(batch(number)[:3], 1, effort=99)
            assert [hit[0].key for hit in hits] == [f"{{number}}/{{row}}" for row in range(3)], hits
    outcomes.append([os.WIFSIGNALED(status), there])
    if there:
        break
    step += 1
for part in parts:
    SketchIndex.open(part).verify()
print(json.dumps(outcomes))
"""
)


def test_readers_see_whole_generations_while_another_process_writes(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, folder],
        env=ENVIRONMENT,
    )
    try:
        seen: list[int] = []
        query = np.random.default_rng(0).normal(size=(BATCH, DIM)).astype(np.float32)
        while not seen or seen[-1] < COMMITS * BATCH:
            assert process.poll() in (None, 0)
            if not (folder / "current.json").exists():
                time.sleep(0.02)
                continue
            index = SketchIndex.open(folder)
            seen.append(len(index))
            folder.with_name(f"seen{len(index)}").touch()
            if seen[-1]:
                hits = index.search(query, 1, effort=200)
                assert [hit[0].key for hit in hits] == [f"0/{row}" for row in range(BATCH)]
                assert index.item(len(index) - 1)[0] == f"{len(index) // BATCH - 1}/{BATCH - 1}"
    finally:
        process.kill()
        process.wait()
    assert all(rows % BATCH == 0 for rows in seen)
    assert seen == sorted(seen)
    assert len(set(seen)) >= COMMITS // 3, "the reader saw the writer at work"
    SketchIndex.open(folder).verify()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_writer_killed_at_any_step_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    output = subprocess.run(
        [sys.executable, "-c", KILL, folder],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr
    outcomes = json.loads(output.stdout)
    killed = [committed for signalled, committed in outcomes if signalled]
    assert len(killed) >= 12
    # Some were killed before their commit, some after it while they removed former files.
    assert killed[0] == 4
    assert killed[-1] > 4
    with IndexWriter.open(folder) as index:
        assert len(index) == outcomes[-1][1] * BATCH
    named = {file.name for file in SketchIndex.open(folder).manifest.files}
    assert {path.name for path in folder.iterdir()} == named | {"current.json", "write.lock"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_merge_killed_at_any_step_is_run_again(tmp_path: Path) -> None:
    output = subprocess.run(
        [sys.executable, "-c", MERGE, tmp_path],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr
    outcomes = json.loads(output.stdout)
    assert len(outcomes) >= 12
    assert all(killed and not there for killed, there in outcomes[:-1])
    merged = tmp_path / "merged"
    # A kill after the last file took its place leaves its empty folder to the next writer.
    IndexWriter.open(merged).close()
    named = {file.name for file in SketchIndex.open(merged).manifest.files}
    assert {path.name for path in merged.iterdir()} == named | {"current.json", "write.lock"}
