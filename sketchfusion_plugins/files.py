"""Files: atomic writes, and the folder of the user's cache.

A reader, or a crash at any moment, sees the old file or the new one. A file grows in a folder of
its own beside its place, ``.NAME.unfinished``, which its writer holds locked. Whoever finds such a
folder that nobody has locked knows that its writer was killed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

UNFINISHED = ".unfinished"
ATTEMPTS = 10  # to lock a folder of one's own
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LONGEST_NAME = 200  # in bytes, of a file that its folder is named after


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Temporary path near ``path`` that takes its place when the block ends without error.

    What a killed writer of the same path left is removed. A symbolic link is replaced itself: what
    it leads to, such as a file of a cache that others share, stays as it is.

    Args:
        path: File to write.
        durable: Wait until the disk has it, so that it outlasts a power failure too. False saves
            milliseconds where a file that was lost is noticed and made again.

    Raises:
        OSError: The folder cannot be written to, or the disk is full; ``path`` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder, handle = _claim(path)
    except OSError as error:
        # Of a name that nobody has chosen.
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        # Libraries that write through a temporary file of their own do so in this folder too.
        temporary = folder / "file.tmp"
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        if durable:
            # Windows flushes what is open for writing alone.
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        # Such a file is private to its owner; a finished one follows the user's umask.
        temporary.chmod(mode)
        temporary.replace(path)
        if durable:
            _flush_names(path.parent)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        # Of a name that nobody has chosen, or of none, as a file's `write` raises it.
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _release(handle)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers left in a folder; living ones, and all others, are left alone."""
    # What `_claim` has named: a folder of the user's may end alike.
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError):
            handle = _lock_folder(path)
            if handle is not None:
                shutil.rmtree(path, ignore_errors=True)
                _release(handle)


def lock_file(handle: int) -> bool:
    """Lock an open file for this process until it is closed; False if another has it locked.

    Where files cannot be locked (Windows, some network drives) nothing is, and it is True.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def cache_folder() -> Path:
    """Folder for what this package computes once and keeps for the user.

    It is ``$SKETCHFUSION_CACHE``, else ``$XDG_CACHE_HOME/sketchfusion``, else
    ``~/.cache/sketchfusion``.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sketchfusion"
    return Path(os.environ.get("SKETCHFUSION_CACHE") or home)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, 64 digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def null_prompt_path(source: str, revision: str | None, variant: str | None = None) -> Path:
    """File in `cache_folder` for the null prompt's embedding of a Stable Diffusion source."""
    folder = Path(source)
    name = str(folder.resolve()) if folder.is_dir() else source
    version = str(revision) if variant is None else f"{revision}@{variant}"
    key = hashlib.sha256(os.fsencode(f"{name}@{version}")).hexdigest()[:24]
    return cache_folder() / "null_prompts" / f"{key}.safetensors"


def write_text(text: str, path: Path) -> None:
    """Write a text file in UTF-8, atomically; bytes of names that are no UTF-8 are spelt out."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_safetensors(
    tensors: Mapping[str, Tensor],
    path: Path,
    metadata: dict[str, str] | None = None,
    durable: bool = True,
) -> None:
    """Write tensors atomically; see `replacing`.

    Raises:
        OSError: The file cannot be written; what was at ``path`` is untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path, durable) as temporary:
        try:
            save_file(contiguous, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"could not write {path}: {error}") from error


def _claim(path: Path) -> tuple[Path, int | None]:
    """An empty folder for one writer of a path, with the handle of its lock."""
    # A name has 255 bytes at most.
    name = path.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:24]
    folder, handle = path.with_name(f".{name}{UNFINISHED}"), None
    if sys.platform != "win32":
        with suppress(FileExistsError):
            folder.mkdir()
        try:
            handle = _lock_folder(folder)
        except OSError:
            # This drive knows no locks, so nobody uses the folder.
            with suppress(OSError):
                folder.rmdir()
    if handle is not None:
        try:
            for left in folder.iterdir():
                left.unlink()
            return folder, handle
        except OSError:
            # Something in it stays, such as a folder that somebody made.
            _release(handle)
    # Another writer of the same path may be alive.
    for _ in range(ATTEMPTS):
        folder = path.with_name(f".{name}.{token_hex(4)}{UNFINISHED}")
        folder.mkdir()
        try:
            handle = _lock_folder(folder)
        except OSError:
            return folder, None
        if handle is not None:
            return folder, handle
        # Somebody's `remove_unfinished` came between the two and takes it for a dead writer's.
        with suppress(OSError):
            folder.rmdir()
    # That is no chance: folders made here cannot be opened, so nobody locks and removes them.
    folder.mkdir()
    return folder, None


def _flush_names(folder: Path) -> None:
    """Make a renaming outlast a power failure, where folders can be flushed."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _lock_folder(folder: Path) -> int | None:
    """Handle of a folder that is locked now; None if another has it, or it is gone.

    Raises:
        OSError: Folders cannot be locked here.
    """
    if sys.platform == "win32":
        raise OSError("Windows locks no folders")
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last owner may have removed it since it was opened.
        if folder.stat().st_ino == os.fstat(handle).st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _release(handle: int | None) -> None:
    if handle is None or sys.platform == "win32":
        return
    import fcntl

    # A process that was forked meanwhile has the handle too, and would keep the lock.
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)
