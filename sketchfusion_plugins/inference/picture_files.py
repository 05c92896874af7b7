"""Picture files of a command: found in folders, read, bad ones told apart; masks written."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sketchfusion_plugins.data.pictures import SUFFIXES
from sketchfusion_plugins.files import replacing
from sketchfusion_plugins.images import open_image, to_tensor
from sketchfusion_plugins.problems import Problems, skipping

# Threads that read; each may hold a decoded picture of up to half a gigabyte.
READERS = 4


def list_pictures(inputs: Sequence[str | Path], problems: Problems | None = None) -> list[Path]:
    """Files as they were named, and the pictures in folders and their subfolders, sorted.

    Files named outright are kept whatever their suffix, and also if they do not exist: reading them
    tells why they cannot be used. Hidden files and folders are passed over. None comes twice.
    Symbolic links to folders are followed: what they lead to is listed below the first of them,
    unless it lies in the folder itself.

    Args:
        inputs: Files and folders.
        problems: Collects subfolders that cannot be read; without it they are raised.

    Raises:
        FileNotFoundError: Nothing was named, or a folder holds no picture.
        OSError: A folder cannot be read; a subfolder only without ``problems``, or strict ones.
    """
    found: dict[Path, None] = {}
    for name in inputs:
        path = Path(name).expanduser()
        try:
            folder = path.is_dir()
        except PermissionError:
            folder = False
        if not folder:
            found[path] = None
            continue
        inside = sorted(_pictures_below(path, problems))
        if not inside:
            raise FileNotFoundError(
                f"{path} holds no picture; looked for {', '.join(sorted(SUFFIXES))}."
            )
        found.update(dict.fromkeys(inside))
    if not found:
        raise FileNotFoundError("no picture was named. Give files or folders.")
    return list(found)


def read_batches(
    paths: Sequence[Path],
    size: int,
    problems: Problems,
    batch_size: int,
    what: str,
    progress: bool = True,
) -> Generator[tuple[list[Path], Tensor]]:
    """Readable files and their images, batch by batch; the next batch is read meanwhile.

    Args:
        paths: Files.
        size: Side, in pixels, of the square that each is padded to.
        problems: Collects files that are no pictures.
        batch_size: Files per batch.
        what: Name of the progress bar.
        progress: Show it, when standard error is a terminal.

    Yields:
        Files that could be read, and their images ``[B, 3, size, size]`` in -1..1; nothing for a
        batch without any.

    Raises:
        OSError: A file cannot be read, and ``problems`` is strict.
        ValueError: ``batch_size`` is below 1.
    """
    from tqdm import tqdm

    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    hidden = None if progress else True
    # Threads, since Pillow decodes and resizes without holding Python's lock.
    pool = ThreadPoolExecutor(READERS, "reader")
    try:
        with tqdm(total=len(paths), desc=what, unit="picture", disable=hidden, leave=False) as bar:
            following = _submit(pool, paths[:batch_size], size)
            for end in range(batch_size, len(paths) + batch_size, batch_size):
                current = following
                following = _submit(pool, paths[end : end + batch_size], size)
                readable, images = [], []
                for path, image in current:
                    with skipping(problems, path):
                        images.append(image.result())
                        readable.append(path)
                if images:
                    yield readable, torch.stack(images)
                bar.update(len(current))
    finally:
        pool.shutdown(cancel_futures=True)


def check_png(path: Path | None) -> None:
    """Refuse to write another format, before anything is computed.

    Raises:
        ValueError: The suffix is another one.
    """
    if path is not None and path.suffix.lower() != ".png":
        raise ValueError(f"cannot write {path.name!r}, expected a name that ends in .png.")


def check_targets(targets: Sequence[Path | None], inputs: Sequence[Path]) -> None:
    """Refuse to write over what is read, or twice to one file, before anything is computed.

    Args:
        targets: Files to write; None for those that are not wanted.
        inputs: Files that are read.

    Raises:
        ValueError: Two of them are one file, perhaps by a link.
    """
    wanted = [target for target in targets if target is not None]
    for number, target in enumerate(wanted):
        for source in inputs:
            if _is_same_file(target, source):
                raise ValueError(
                    f"writing {target} would replace {source}, which is read. Give another name."
                )
        for former in wanted[:number]:
            if _is_same_file(target, former):
                raise ValueError(
                    f"{target} would replace {former}, which is written too. Give another name."
                )


def write_png(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write a picture ``[h, w]`` or ``[h, w, 3]`` atomically.

    Raises:
        OSError: The file cannot be written.
        ValueError: See `check_png`.
    """
    from PIL import Image

    check_png(path)
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def _is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, which need not exist."""
    if one.resolve() == other.resolve():
        return True
    # Names alone do not tell it where capitals and small letters are the same.
    try:
        return one.samefile(other)
    except OSError:
        return False


def _pictures_below(folder: Path, problems: Problems | None) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        if problems is None or Path(error.filename) == folder:
            raise error
        problems.add(error.filename, error)

    visited: set[tuple[int, int]] = set()
    tops = [folder]
    while tops:
        links = []
        for parent, folders, files in chain.from_iterable(
            os.walk(top, onerror=unreadable) for top in tops
        ):
            status = Path(parent).stat()
            place = (status.st_dev, status.st_ino)
            # Nothing that lies in the folder itself is left out.
            if place in visited and tops != [folder]:
                folders.clear()
                continue
            visited.add(place)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            links += [path for name in folders if _is_link(path := Path(parent, name))]
            for path in (Path(parent, name) for name in files if not name.startswith(".")):
                if path.suffix.lower() in SUFFIXES and _may_be_file(path):
                    yield path
        # After all that needs no link, whose pictures so keep their names.
        tops = sorted(links)


def _is_link(path: Path) -> bool:
    """False also for what cannot be asked; looking into it tells why it cannot be."""
    try:
        return path.is_symlink()
    except OSError:
        return False


def _may_be_file(path: Path) -> bool:
    """False for pipes and sockets; what cannot be asked is read, which tells why it cannot be."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _submit(
    pool: ThreadPoolExecutor, paths: Sequence[Path], size: int
) -> list[tuple[Path, Future[Tensor]]]:
    return [(path, pool.submit(_read, path, size)) for path in paths]


def _read(path: Path, size: int) -> Tensor:
    return to_tensor(open_image(path), size)
