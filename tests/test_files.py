"""Atomic writes, by interrupting them."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from sketchfusion_plugins import files
from sketchfusion_plugins.files import (
    remove_unfinished,
    replacing,
    write_safetensors,
    write_text,
)
from sketchfusion_plugins.problems import tell


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_appears_whole_in_new_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.json"
    write_text("Zoë ✓\n", path)
    assert path.read_bytes() == "Zoë ✓\n".encode()
    assert _names(path.parent) == ["text.json"]


def test_old_content_stays_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        # The move is within one file system.
        assert temporary.stat().st_dev == path.stat().st_dev
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert _names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_interruption_leaves_the_old_file_alone(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["file"]


def test_interruption_of_a_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replacing(tmp_path / "file"):
        raise RuntimeError
    assert _names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no locks of folders")
@pytest.mark.parametrize("sweep", ["before the lock", "at the lock"])
def test_folders_that_a_sweep_takes_before_they_are_locked(
    sweep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`remove_unfinished` of another process between a folder's making and its lock."""
    path, lock = tmp_path / "file", files._lock_folder
    taken: list[Path] = []

    def late(folder: Path) -> int | None:
        # The folder that all writers of a path try first, then two of this writer's own.
        if len(taken) > 2 or folder in taken:
            return lock(folder)
        taken.append(folder)
        if sweep == "before the lock":
            remove_unfinished(tmp_path)
            assert not folder.exists()
            return lock(folder)
        theirs = lock(folder)
        assert theirs is not None
        mine = lock(folder)
        shutil.rmtree(folder)
        files._release(theirs)
        return mine

    monkeypatch.setattr(files, "_lock_folder", late)
    with replacing(path) as temporary:
        assert len(taken) == 3
        remove_unfinished(tmp_path)
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert _names(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no locks of folders")
@pytest.mark.parametrize("locks", ["folders that cannot be opened", "no locks on this drive"])
def test_folders_that_cannot_be_locked(
    locks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock(_: Path) -> None:
        if locks == "no locks on this drive":
            raise OSError("no locks")

    monkeypatch.setattr(files, "_lock_folder", lock)
    write_text("whole", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "whole"
    # The first one tried may be another writer's; of the others none is left.
    assert set(_names(tmp_path)) <= {"file", ".file.unfinished"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no locks of folders")
def test_what_others_put_into_a_writers_folder_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".file.unfinished" / "mine").mkdir(parents=True)
    for text in ("first", "second"):
        write_text(text, tmp_path / "file")
        assert (tmp_path / "file").read_text() == text
    assert _names(tmp_path) == [".file.unfinished", "file"]
    # Nobody holds it; the next start takes it away with what is in it.
    remove_unfinished(tmp_path)
    assert _names(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_text("text", tmp_path / "file")
        write_safetensors({"a": torch.ones(2)}, tmp_path / "tensors")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    for name in ("file", "tensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


@pytest.mark.skipif(os.name == "nt", reason="Windows lets few users make links")
def test_links_are_replaced(tmp_path: Path) -> None:
    shared, link = tmp_path / "shared", tmp_path / "link"
    shared.write_text("shared")
    link.symlink_to(shared)
    write_text("own", link)
    assert (link.is_symlink(), link.read_text(), shared.read_text()) == (False, "own", "shared")


@pytest.mark.skipif(os.name == "nt", reason="Windows limits whole paths")
@pytest.mark.parametrize("name", ["n" * 250 + ".json", "ä" * 120 + ".txt"])
def test_names_as_long_as_they_may_be(name: str, tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_text(text, tmp_path / name)
        assert (tmp_path / name).read_text() == text
    assert _names(tmp_path) == [name]


def test_bytes_that_are_no_utf8_are_spelt_out(tmp_path: Path) -> None:
    write_text(f"{os.fsdecode(bytes([0xE9]))}t", tmp_path / "text")
    assert (tmp_path / "text").read_text("utf-8") == "\\udce9t"


def test_tensors_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    values = torch.arange(6.0).view(2, 3)
    tensors = {
        "transposed": values.t(),
        "parameter": torch.nn.Parameter(values),
        "half": values.bfloat16(),
    }
    write_safetensors(tensors, path, {"key": "value"})
    read = load_file(path)
    assert set(read) == set(tensors)
    assert torch.equal(read["transposed"], torch.tensor([[0.0, 3], [1, 4], [2, 5]]))
    assert torch.equal(read["parameter"], values)
    assert read["half"].dtype == torch.bfloat16
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"key": "value"}


@pytest.mark.skipif(os.name == "nt", reason="Windows flushes no folders")
@pytest.mark.parametrize("durable", [True, False])
def test_what_outlasts_a_power_failure(
    durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the content, through a handle that may write, then the name that it has now."""
    import fcntl

    path, flushed = tmp_path / "file", []
    path.write_text("old")

    def fsync(handle: int) -> None:
        what = os.fstat(handle)
        if stat.S_ISDIR(what.st_mode):
            flushed.append(("folder", what.st_ino, path.read_text()))
            # Some network drives flush no folders.
            raise OSError("not here")
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError("what Windows says of a handle that may only read")
        flushed.append(("file", what.st_ino, path.read_text()))

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(path, durable) as temporary:
        temporary.write_text("new")
    expected = [
        ("file", path.stat().st_ino, "old"),
        ("folder", tmp_path.stat().st_ino, "new"),
    ]
    assert flushed == (expected if durable else [])
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [SafetensorError("disk full"), OSError("disk full")])
def test_failed_tensor_write(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tensors.safetensors"
    write_safetensors({"a": torch.ones(2)}, path)

    def fail(_: Any, filename: Path, **__: Any) -> None:
        Path(filename).write_bytes(b"half")
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_safetensors({"a": torch.zeros(2)}, path)
    assert torch.equal(load_file(path)["a"], torch.ones(2))
    assert _names(tmp_path) == [path.name]


def test_what_cannot_be_written_is_told_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    path = tmp_path / "a.txt"
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "mkdir", lambda path, *_, exist_ok=False, **__: exist_ok or refuse(path)
        )
        with pytest.raises(OSError, match="Read-only") as error:
            write_text("text", path)
    assert error.value.filename == str(path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_with_the_file_that_was_to_be_written(
    code: int, tmp_path: Path
) -> None:
    path = tmp_path / "report.md"
    path.write_text("old")
    with pytest.raises(OSError) as caught, files.replacing(path):
        raise OSError(code, "Error writing bytes to file. Detail: [errno 28]")
    assert tell(caught.value) == f"{path}: {os.strerror(code)}."
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(OSError):
        write_text("text", tmp_path / "file" / "inside")
    assert (tmp_path / "file").read_text() == "text"
