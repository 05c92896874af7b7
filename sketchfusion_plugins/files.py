"""Files: atomic writes, and the folder of the user's cache.

A reader, or a crash at any moment, sees the old file or the new one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Temporary path beside ``path`` that takes its place when the block ends without error.

    Args:
        path: File to write.
        durable: Wait until the disk has it, so that it outlasts a power failure too. False saves
            milliseconds where a file that was lost is noticed and made again.

    Raises:
        OSError: The folder cannot be written to, or the disk is full; ``path`` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    # The user's umask applies to it, unlike to tempfile's; asking for the umask would change it for
    # a moment, in all threads.
    temporary.touch(0o666, exist_ok=False)
    mode = temporary.stat().st_mode
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        # safetensors puts a file of its own, private to its owner, in the place of ours.
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Folder for what this package computes once and keeps for the user.

    It is ``$SKETCHFUSION_CACHE``, else ``$XDG_CACHE_HOME/sketchfusion``, else
    ``~/.cache/sketchfusion``.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sketchfusion"
    return Path(os.environ.get("SKETCHFUSION_CACHE") or home)


def write_text(text: str, path: Path) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
