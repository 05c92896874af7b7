"""Picture files of a command: found in folders, read, bad ones told apart; masks written."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sketchfusion_plugins.files import replacing
from sketchfusion_plugins.images import open_image, to_tensor
from sketchfusion_plugins.problems import Problems, skipping

# Threads that read; each may hold a decoded picture of up to half a gigabyte.
READERS = 4
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def list_pictures(inputs: Sequence[str | Path]) -> list[Path]:
    """Files as they were named, and the pictures in folders and their subfolders, sorted.

    Files named outright are kept whatever their suffix, and also if they do not exist: reading them
    tells why they cannot be used. Hidden files and folders are passed over. None comes twice.

    Raises:
        FileNotFoundError: Nothing was named, or a folder holds no picture.
    """
    found: dict[Path, None] = {}
    for name in inputs:
        path = Path(name).expanduser()
        if not path.is_dir():
            found[path] = None
            continue
        inside = [child for child in sorted(path.rglob("*")) if _is_picture(child, path)]
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


def _is_picture(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.suffix.lower() in SUFFIXES and path.is_file()


def _submit(
    pool: ThreadPoolExecutor, paths: Sequence[Path], size: int
) -> list[tuple[Path, Future[Tensor]]]:
    return [(path, pool.submit(_read, path, size)) for path in paths]


def _read(path: Path, size: int) -> Tensor:
    return to_tensor(open_image(path), size)
