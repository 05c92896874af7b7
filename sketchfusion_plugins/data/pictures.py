"""Labelled pictures from folders: what every photo-sketch data set hands to a model.

A data set's own module lists `Picture`s from its layout on disk; `PictureDataset` opens them. Its
samples are the same everywhere, so retrieval and recognition need not know where they come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from sketchfusion_plugins.images import open_image, to_tensor
from sketchfusion_plugins.problems import skipping

if TYPE_CHECKING:
    from PIL import Image

# What counts as a picture in a folder; commands that are given folders look for the same.
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
NO_INSTANCE = -1
# Names on either side of a split, wherever there are enough: among pictures of one class every
# ranking is perfect.
FEWEST = 2


@dataclass(frozen=True)
class Picture:
    """One image file.

    Attributes:
        path: The file.
        category: Name of its class.
        instance: What a sketch and the photo that it was drawn from have in common, unique within
            the category; None where sketches were drawn from no particular photo.
    """

    path: Path
    category: str
    instance: str | None = None

    def __post_init__(self) -> None:
        if not self.category or self.instance == "":
            raise ValueError(
                f"{self.path}: category and instance must not be empty, got {self.category!r} and "
                f"{self.instance!r}. Use None for a picture without an instance."
            )


class PictureDataset(Dataset[dict[str, Any]]):
    """Opens pictures: transparency on white, EXIF rotation applied.

    Samples are dictionaries: ``image``, what ``transform`` returns; ``label``, the category's index
    in ``categories``; ``instance``, see `instance_number`; ``key``, the file's path.

    Args:
        pictures: The pictures, in the order of the samples.
        categories: Class names in the order of the labels; by default those of the pictures,
            sorted. Give the same to every data set whose labels are compared.
        transform: Turns an RGB Pillow image into the sample's image; must be picklable for worker
            processes, like ``functools.partial(to_tensor, size=256)``. By default `to_tensor` at
            the image's own size.
        root: Folder that keys are relative to; None keeps paths as they are.

    Raises:
        ValueError: No pictures, repeated categories, a picture of a category that is not among
            them, or one that lies outside ``root``. Reading a sample: ``transform`` refuses it.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        categories: Sequence[str] | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
        root: str | Path | None = None,
    ) -> None:
        if not pictures:
            raise ValueError("expected at least one picture, got none.")
        self.pictures = tuple(pictures)
        self.categories = label_names((p.category for p in pictures), categories)
        self.transform = to_tensor if transform is None else transform
        self.keys = tuple(
            (p.path if root is None else p.path.relative_to(root)).as_posix() for p in pictures
        )
        number = {name: index for index, name in enumerate(self.categories)}
        self.labels = torch.tensor([number[p.category] for p in pictures])
        self.instances = torch.tensor([instance_number(p.category, p.instance) for p in pictures])

    def picture_files(self) -> list[Path]:
        """All files that samples are read from."""
        return [picture.path for picture in self.pictures]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.pictures[index].path
        # What the transform refuses is told with the file.
        with skipping(None, path):
            image = self.transform(open_image(path))
        return {
            "image": image,
            "label": int(self.labels[index]),
            "instance": int(self.instances[index]),
            "key": self.keys[index],
        }


def instance_number(category: str, instance: str | None) -> int:
    """Number of an instance, the same in every data set, process and run.

    Numbers come from a hash, so that sketches and photos need no common list to be compared.

    Returns:
        Non-negative 63-bit integer; `NO_INSTANCE` for None.
    """
    if instance is None:
        return NO_INSTANCE
    return seed_of(category, instance)


def seed_of(*parts: str | int) -> int:
    """Seed made of several values, the same in every process and run.

    Returns:
        Non-negative 63-bit integer.
    """
    # Names of files need not be UTF-8.
    text = "\0".join(map(str, parts)).encode(errors="surrogateescape")
    digest = hashlib.sha256(text).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def by_concept_split(
    names: Iterable[str], held_out_fraction: float, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Split names, not pictures, so that what is held out was never seen in any form.

    A name is held out if its own hash, scaled to 0..1, is below ``held_out_fraction``, whatever the
    other names are. In any case the two names of smallest hash are held out and the two of largest
    hash are trained on; of two or three names one is held out.

    So data may grow: where more than two names are trained on, none of them is held out when names
    are added. Where there are two or one, they may have been left so that there are any, and can be
    held out later.

    Args:
        names: Categories or concepts, in any order; repeated ones count once.
        held_out_fraction: Chance of a name to be held out, between 0 and 1.
        seed: Another seed, another split.

    Returns:
        Names to train on and names held out, each sorted.

    Raises:
        ValueError: Fewer than two names, or a fraction outside 0..1.
    """
    distinct = sorted(set(names))
    if len(distinct) < 2 or not 0 < held_out_fraction < 1:
        raise ValueError(
            "expected at least two names and a held-out fraction between 0 and 1, got "
            f"{len(distinct)} and {held_out_fraction}."
        )
    shares = {name: seed_of(seed, name) / 2**63 for name in distinct}
    below = sum(share < held_out_fraction for share in shares.values())
    count = max(1, min(max(FEWEST, below), len(distinct) - FEWEST))
    held_out = set(sorted(distinct, key=shares.__getitem__)[:count])
    return [name for name in distinct if name not in held_out], sorted(held_out)


def some_of(names: Iterable[str], most: int = 10) -> str:
    """Names for a message, sorted; of many the first ones and how many more there are."""
    every = sorted(names)
    more = [f"{len(every) - most} more"] if len(every) > most else []
    return ", ".join([*every[:most], *more])


def label_names(present: Iterable[str], names: Sequence[str] | None) -> tuple[str, ...]:
    """Class names in the order of the labels.

    Args:
        present: Categories that need a label.
        names: The order asked for; None sorts ``present``.

    Raises:
        ValueError: ``names`` repeats itself or lacks a category that is present.
    """
    found = set(present)
    if names is None:
        return tuple(sorted(found))
    lacking = sorted(found - set(names))
    if lacking or len(set(names)) != len(names):
        raise ValueError(
            f"categories must be distinct and name every picture's; got {len(names)} names, "
            f"{len(set(names))} of them distinct, without {lacking[:5]}. Leave out the pictures of "
            "other categories, or add these."
        )
    return tuple(names)


def of_categories(pictures: Iterable[Picture], categories: Iterable[str]) -> list[Picture]:
    """Pictures of some categories, in their order; for zero-shot and held-out evaluation."""
    wanted = set(categories)
    return [picture for picture in pictures if picture.category in wanted]


def scan(
    folder: str | Path,
    how_to_get: str,
    instance: Callable[[Path], str] | None = None,
) -> list[Picture]:
    """List ``folder/<category>/<picture>``, sorted by category and file name.

    Hidden files and files that are no pictures by their suffix are passed over.

    Args:
        folder: Folder of category folders.
        how_to_get: Where the data set comes from and how it must lie, for the error's message.
        instance: Name of the instance by file; None for pictures without one.

    Raises:
        FileNotFoundError: The folder is missing or holds no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing. {how_to_get}")
    pictures = [
        Picture(path, category.name, None if instance is None else instance(path))
        for category in sorted(folder.iterdir())
        if category.is_dir() and not category.name.startswith(".")
        for path in sorted(category.iterdir())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not pictures:
        raise FileNotFoundError(
            f"{folder} holds no picture ({', '.join(sorted(SUFFIXES))}) in folders named by "
            f"category. {how_to_get}"
        )
    return pictures


def read_list(
    path: str | Path,
    root: str | Path,
    how_to_get: str,
    instance: Callable[[Path], str] | None = None,
) -> list[Picture]:
    """List the pictures that a published file list names, in its order.

    A line is ``folder/<category>/<picture> <label>``; the label is optional and not used, because
    lists number their classes differently. Names of categories may hold blanks.

    Args:
        path: Text file, UTF-8.
        root: Folder that the lines are relative to.
        how_to_get: Where the data set comes from and how it must lie, for the error's message.
        instance: Name of the instance by file; None for pictures without one.

    Raises:
        FileNotFoundError: The list is missing, or a picture that it names.
        ValueError: A line names no picture in a folder below ``root``, or there is none.
    """
    path, root = Path(path), Path(root)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {how_to_get}")
    pictures = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        name, _, label = line.strip().rpartition(" ")
        relative = Path(name if label.isdigit() and name else line.strip())
        if relative == Path():
            continue
        outside = relative.is_absolute() or ".." in relative.parts or len(relative.parts) < 2
        if outside or relative.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"{path}, line {number}: expected folder/<category>/<picture>, got {line!r}."
            )
        file = root / relative
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, named by {path}. {how_to_get}")
        pictures.append(
            Picture(file, relative.parts[-2], None if instance is None else instance(file))
        )
    if not pictures:
        raise ValueError(f"{path} names no picture. {how_to_get}")
    return pictures
