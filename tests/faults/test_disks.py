"""Full disks and folders that cannot be written: one OSError, and what was there is untouched."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sketchfusion_plugins.files import write_safetensors, write_text
from sketchfusion_plugins.inference.descriptor_files import DescriptorWriter
from sketchfusion_plugins.inference.picture_files import write_png

ROOM = 4096
DESCRIPTORS = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
NAMES = [f"{number}.png" for number in range(len(DESCRIPTORS))]


@contextmanager
def _full_disk(room: int = ROOM) -> Iterator[None]:
    """No file may grow beyond some bytes."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def _write_descriptors(path: Path) -> None:
    with DescriptorWriter(path, "model") as writer:
        known = len(writer.known)
        writer.add(NAMES[known:], DESCRIPTORS[known:])


def _write_masks(folder: Path) -> None:
    from sketchfusion_plugins.data.layout import write_pair

    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    write_pair(folder, "train", "a", noise, noise[..., 0])


def _noise(path: Path) -> None:
    write_png(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8), path)


def _weights(path: Path, value: float = 2.0) -> None:
    write_safetensors({"a": torch.full((5000,), value)}, path)


# What is written, and by whom. Each is called with a path inside an empty folder.
WRITERS: dict[str, Callable[[Path], None]] = {
    "text.json": lambda path: write_text("x" * 9000, path),
    "a.safetensors": _weights,
    "a.png": _noise,
    "a.jsonl": _write_descriptors,
    "descriptors.safetensors": _write_descriptors,
    "descriptors.parquet": _write_descriptors,
    "data": _write_masks,
}


@pytest.mark.parametrize("name", WRITERS)
def test_full_disk_leaves_an_empty_folder_empty(name: str, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with _full_disk(), pytest.raises(OSError, match=r"."):
        WRITERS[name](tmp_path / name)
    left = {name: data for name, data in _contents(tmp_path).items() if data}
    assert left == {}
    WRITERS[name](tmp_path / name)
    assert "unfinished" not in str(_contents(tmp_path).keys())


@pytest.mark.parametrize("name", [name for name in WRITERS if "." in name])
def test_full_disk_leaves_the_old_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "a.jsonl":
        with DescriptorWriter(path, "model") as writer:
            writer.add(NAMES[:3], DESCRIPTORS[:3])
    else:
        path.write_text("old")
    before = _contents(tmp_path)
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with _full_disk(), pytest.raises(OSError, match=r"."):
        WRITERS[name](path)
    assert _contents(tmp_path) == before


def test_lines_written_before_the_disk_was_full_stay(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    _write_descriptors(whole)
    with _full_disk(), pytest.raises(OSError), DescriptorWriter(path, "model") as writer:
        for start in range(0, len(NAMES), 7):
            writer.add(NAMES[start : start + 7], DESCRIPTORS[start : start + 7])
    kept = path.read_bytes()
    assert 0 < len(kept) <= ROOM and kept.endswith(b"\n")
    _write_descriptors(path)
    assert path.read_bytes() == whole.read_bytes()


def test_adapters_on_a_full_disk(build: Any, tmp_path: Path) -> None:
    from sketchfusion_plugins.checkpoint import adapter_state, load_adapters

    build(seed=1).save_pretrained(tmp_path)
    before = _contents(tmp_path)
    with _full_disk(), pytest.raises(OSError, match=r"."):
        build(seed=2).save_pretrained(tmp_path)
    assert _contents(tmp_path) == before
    again = build(seed=3)
    assert load_adapters(again, tmp_path) == []
    expected = adapter_state(build(seed=1))
    assert all(torch.equal(tensor, expected[n]) for n, tensor in adapter_state(again).items())


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_index_on_a_full_disk(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    from sketchfusion_plugins.index import IndexWriter, SketchIndex, approximation

    monkeypatch.setattr(approximation, "MINIMUM_ROWS", 50)

    def vectors(seed: int) -> Tensor:
        return torch.randn(100, 8, generator=torch.Generator().manual_seed(seed))

    with IndexWriter.create(tmp_path, 8, kind) as writer:
        writer.add(vectors(0), [f"0/{row}" for row in range(100)])
        writer.commit()
        writer.add(vectors(1), [f"1/{row}" for row in range(100)])
        # Room for the vectors' file, not for the graph's.
        for room in (500, 9000) if kind == "hnsw" else (500,):
            with _full_disk(room), pytest.raises(OSError, match=r"."):
                writer.commit()
            assert len(SketchIndex.open(tmp_path)) == 100
            SketchIndex.open(tmp_path).verify()
        writer.commit()
    found = SketchIndex.open(tmp_path)
    found.verify()
    assert [key for key, _ in found.items()] == [f"{n}/{r}" for n in (0, 1) for r in range(100)]
    with IndexWriter.open(tmp_path):
        named = {file.name for file in found.manifest.files}
    assert {path.name for path in tmp_path.iterdir()} == {*named, "current.json", "write.lock"}


# --- folders -----------------------------------------------------------------------------------


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes a folder read-only, for root by mounting it so."""
    mounted: list[Path] = []

    def protect(folder: Path) -> None:
        folder.chmod(0o555)
        if not os.access(folder, os.W_OK):
            mounted.append(folder)
            return
        mount = shutil.which("mount")
        for command in (
            [mount or "mount", "--bind", str(folder), str(folder)],
            [mount or "mount", "-o", "remount,bind,ro", str(folder)],
        ):
            if mount is None or subprocess.run(command, capture_output=True).returncode:
                pytest.skip("this user writes to read-only folders and may not mount any")
            mounted.append(folder)

    yield protect
    for folder in dict.fromkeys(mounted):
        subprocess.run(["umount", str(folder)], capture_output=True)
        folder.chmod(0o755)


@pytest.mark.parametrize("name", WRITERS)
def test_read_only_folder(name: str, read_only: Callable[[Path], None], tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    read_only(folder)
    with pytest.raises(OSError, match=r"folder"):
        WRITERS[name](folder / name)
    assert _contents(folder) == {"mine": b"mine"}


@pytest.mark.parametrize("name", WRITERS)
def test_file_in_place_of_the_folder(name: str, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / "folder").write_text("mine")
    with pytest.raises(OSError, match=r"folder"):
        WRITERS[name](tmp_path / "folder" / name)
    assert _contents(tmp_path) == {"folder": b"mine"}


def test_adapters_and_index_where_a_file_lies(build: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        build().save_pretrained(tmp_path / "file")
    pytest.importorskip("faiss")
    from sketchfusion_plugins.index import IndexWriter

    with pytest.raises(OSError, match="file"):
        IndexWriter.create(tmp_path / "file", 3)
    assert _contents(tmp_path) == {"file": b"mine"}
