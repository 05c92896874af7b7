"""Threads and processes at once: writers take turns or are told, readers see whole records."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sketchfusion_plugins.files import UNFINISHED, remove_unfinished, replacing, write_text
from sketchfusion_plugins.inference.descriptor_files import DescriptorWriter

THREADS = 8
PROCESSES = 4
BATCHES = 5
ROWS = 20
DIM = 8
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

# Forks writers, which add their batches one by one and wait for their turn each time, while threads
# of the first process read.
COMPETE = f"""
import os, sys, threading, time
import numpy as np
from pathlib import Path
from sketchfusion_plugins.index import IndexWriter, SketchIndex

folder = Path(sys.argv[1])
IndexWriter.create(folder, {DIM}).close()
turned_away, looked_at = (folder.with_name(name) for name in ("turned_away", "looked_at"))
looked_at.mkdir()

def wait_until(happened):
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)

def write(who):
    for number in range({BATCHES}):
        vectors = np.random.default_rng([who, number]).normal(size=({ROWS}, {DIM}))
        while True:
            try:
                with IndexWriter.open(folder) as writer:
                    writer.add(vectors, [f"{{who}}/{{number}}/{{row}}" for row in range({ROWS})])
                    if who == 0:
                        # On a machine however slow: another writer finds this one at work,
                        wait_until(turned_away.exists)
                break
            except BlockingIOError:
                turned_away.touch()
                time.sleep(0.02)
        if who == 0:
            # and a reader finds what it has written before there is more of it.
            there = len(SketchIndex.open(folder))
            wait_until(lambda: any(int(seen.name) >= there for seen in looked_at.iterdir()))

children = []
for who in range({PROCESSES}):
    children.append(os.fork())
    if not children[-1]:
        write(who)
        os._exit(0)
wrong = []

def read():
    last = 0
    while last < {PROCESSES * BATCHES * ROWS}:
        index = SketchIndex.open(folder)
        keys = [key.rpartition("/")[0] for key, _ in index.items()]
        if len(index) < last or any(keys.count(key) != {ROWS} for key in set(keys)):
            wrong.append(keys)
        last = len(index)
        (looked_at / str(last)).touch()
        time.sleep(0.02)

threads = [threading.Thread(target=read, daemon=True) for _ in range({THREADS})]
for thread in threads:
    thread.start()
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
for thread in threads:
    thread.join(60)
assert not any(thread.is_alive() for thread in threads)
assert not wrong, wrong[0]
print(len(list(looked_at.iterdir())))
"""


def _all_at_once(work: Callable[[int], None], count: int = THREADS) -> None:
    barrier = threading.Barrier(count)

    def start(number: int) -> None:
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(start, range(count)))


def test_one_file_written_by_eight_threads(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = [chr(97 + number) * (10_000 + number) for number in range(THREADS)]
    write_text(texts[0], path)
    umask = os.umask(0o027)
    try:

        def work(number: int) -> None:
            for _ in range(30):
                write_text(texts[number], path)
                assert path.read_text() in texts

        _all_at_once(work)
        assert os.umask(0o027) == 0o027, "a thread changed the umask for all"
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks of folders")
def test_what_a_living_writer_has_begun_is_left_alone(tmp_path: Path) -> None:
    dead = tmp_path / f".dead{UNFINISHED}"
    dead.mkdir()
    (tmp_path / f"mine{UNFINISHED}").mkdir()
    (dead / "file.tmp").write_text("half")
    (dead / ".tmpA1b2c3").write_text("half")
    (tmp_path / f".theirs{UNFINISHED}").write_text("a file")
    with replacing(tmp_path / "alive") as temporary:
        temporary.write_text("whole")
        remove_unfinished(tmp_path)
        with replacing(tmp_path / "alive") as second:
            assert second != temporary
            second.write_text("of the second")
        assert (tmp_path / "alive").read_text() == "of the second"
    assert (tmp_path / "alive").read_text() == "whole"
    names = {path.name for path in tmp_path.rglob("*")}
    assert names == {"alive", f"mine{UNFINISHED}", f".theirs{UNFINISHED}"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks of folders")
def test_what_a_dead_writer_of_the_same_file_left_is_removed(tmp_path: Path) -> None:
    dead = tmp_path / f".file{UNFINISHED}"
    dead.mkdir()
    (dead / ".tmpA1b2c3").write_text("half")
    write_text("whole", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks of folders")
def test_second_writer_of_lines_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with DescriptorWriter(path, "model") as writer:
        writer.add(["x.png"], torch.ones(1, 2))
        # The lock is of the open file, not of the process: this is what another process meets.
        with pytest.raises(BlockingIOError, match="another process is writing"):
            DescriptorWriter(path, "model")
        writer.add(["y.png"], torch.ones(1, 2))
    with DescriptorWriter(path, "model") as writer:
        assert writer.known == {"x.png", "y.png"}


def test_a_file_of_another_that_ends_without_a_line_break_is_not_cut(tmp_path: Path) -> None:
    """As a line that a kill cut off does; cutting it would empty the file."""
    for text in ('{"name": "mine"}', "notes", '{"path": "mine"}', '{"path": "a", "model": "b"}'):
        path = tmp_path / "a.jsonl"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"a\.jsonl, line 1"):
            DescriptorWriter(path, "model")
        assert path.read_text() == text


def test_threads_compete_for_an_index_and_search_it(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    from sketchfusion_plugins.index import IndexWriter, SketchIndex

    IndexWriter.create(tmp_path, DIM).close()
    refused: list[int] = []
    ready = threading.Event()

    def vectors(number: int) -> np.ndarray:
        return np.random.default_rng(number).normal(size=(ROWS, DIM))

    def work(number: int) -> None:
        try:
            with IndexWriter.open(tmp_path) as writer:
                writer.add(vectors(number), [f"{number}/{row}" for row in range(ROWS)])
                # The others have tried by now.
                ready.wait(20)
        except BlockingIOError as error:
            assert "another writer has the index" in str(error)
            refused.append(number)
            if len(refused) == THREADS - 1:
                ready.set()

    _all_at_once(work)
    assert len(refused) == THREADS - 1
    found = SketchIndex.open(tmp_path)
    (number,) = set(range(THREADS)) - set(refused)
    wanted = [f"{number}/{row}" for row in range(ROWS)]

    def search(_: int) -> None:
        for _ in range(20):
            hits = found.search(vectors(number), 3)
            assert [hit[0].key for hit in hits] == wanted

    _all_at_once(search)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_extend_an_index_that_threads_read(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    from sketchfusion_plugins.index import SketchIndex

    folder = tmp_path / "index"
    output = subprocess.run(
        [sys.executable, "-c", COMPETE, folder],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr[-3000:]
    assert int(output.stdout) >= BATCHES, "the readers saw the writers at work"
    index = SketchIndex.open(folder)
    index.verify()
    expected = {
        f"{who}/{number}/{row}"
        for who in range(PROCESSES)
        for number in range(BATCHES)
        for row in range(ROWS)
    }
    keys = [key for key, _ in index.items()]
    assert len(keys) == len(expected) and set(keys) == expected
    assert index.manifest.generation == PROCESSES * BATCHES
