"""Picture files of a command: found in folders, read, bad ones told apart; masks written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sketchfusion_plugins.files import replacing
from sketchfusion_plugins.images import open_image, to_tensor
from sketchfusion_plugins.problems import Problems, skipping

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


def read_pictures(
    paths: Sequence[Path], size: int, problems: Problems
) -> tuple[list[Path], Tensor | None]:
    """Read pictures, each padded to a square.

    Args:
        paths: Files.
        size: Side of the squares in pixels.
        problems: Collects files that are no pictures.

    Returns:
        The readable files, and their images ``[B, 3, size, size]`` in -1..1; None if there is none.

    Raises:
        OSError: A file cannot be read, and ``problems`` is strict.
    """
    readable, images = [], []
    for path in paths:
        with skipping(problems, path):
            images.append(to_tensor(open_image(path), size))
            readable.append(path)
    return readable, torch.stack(images) if images else None


def read_batches(
    paths: Sequence[Path],
    size: int,
    problems: Problems,
    batch_size: int,
    what: str,
    progress: bool = True,
) -> Iterator[tuple[list[Path], Tensor]]:
    """Readable files and their images ``[B, 3, size, size]``, batch by batch.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """
    from tqdm import tqdm

    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    hidden = None if progress else True
    with tqdm(total=len(paths), desc=what, unit="picture", disable=hidden, leave=False) as bar:
        for start in range(0, len(paths), batch_size):
            part = paths[start : start + batch_size]
            readable, images = read_pictures(part, size, problems)
            if images is not None:
                yield readable, images
            bar.update(len(part))


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
