"""Segmentation of photos by sketch, from folders: one sketch asks for its category in one photo.

    classes.json                    {"<category>": <value in the masks>, ...}
    photos/<name>.jpg
    masks/<name>.png                one byte per pixel: a category's value, 0 for none, 255 ignored
    sketches/<category>/<sketch>.png

As in sketch-query segmentation (Hu et al., "Sketch-a-Segmenter", IEEE TIP 2020), a photo is asked
for every category that it holds, and other categories are background.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sketchfusion_plugins.data.layout import IGNORED
from sketchfusion_plugins.data.pictures import SUFFIXES, label_names, scan, seed_of
from sketchfusion_plugins.images import (
    FORMATS,
    SPREAD_GREY,
    open_image,
    stored_as,
    to_tensor,
)
from sketchfusion_plugins.problems import skipping

if TYPE_CHECKING:
    from PIL import Image

HOW_TO_GET = (
    'A segmentation data set holds classes.json ({"cat": 1, ...}), photos/<name>.jpg, '
    "masks/<name>.png (one byte per pixel, 0 for none, 255 ignored) and "
    "sketches/<category>/<sketch>.png."
)


class SketchSegmentation(Dataset[dict[str, Any]]):
    """Photos, each with a sketch of a category that it holds.

    Samples: ``sketch`` and ``photo`` [3, S, S], padded with white, in -1..1; ``mask`` [S, S],
    Boolean, the category's pixels; ``valid`` [S, S], Boolean, False where the mask is ignored and
    in the photo's padding; ``label``, the category's index; ``instance``, the photo's number;
    ``key``, ``"<photo> <category>/<sketch>"``. The sketch follows from ``seed`` and the index.

    A photo is not asked for a category that resizing leaves no pixel of; a warning tells how many
    queries are left out so.

    Args:
        root: Folder of the layout above.
        size: Side S that pictures are resized to.
        categories: Categories asked for, in the order of the labels; by default those of
            ``classes.json``, sorted. Give fewer for a zero-shot split.
        seed: Another seed, other sketches.
        repeats: Times that every photo is asked for every category, each with its own sketch.
        limit: Photos per category, the first that can be asked for it; the masks of others are not
            read.
        progress: Show a progress bar while masks are read, when standard error is a terminal.

    Raises:
        FileNotFoundError: A file or folder is missing, or a category has no sketch.
        ValueError: ``classes.json``, a mask or an argument is not as expected, two photos are of
            one stem, or no photo holds any of the categories. Reading a sample: a picture is
            too long for its size.
    """

    def __init__(
        self,
        root: str | Path,
        size: int = 256,
        categories: Sequence[str] | None = None,
        seed: int = 0,
        repeats: int = 1,
        limit: int | None = None,
        progress: bool = True,
    ) -> None:
        from tqdm import tqdm

        self.root, self.size, self.seed, self.repeats = Path(root), size, seed, repeats
        if size < 1 or repeats < 1:
            raise ValueError(f"size and repeats must be at least 1, got {size} and {repeats}.")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}.")
        self.values = read_classes(self.root / "classes.json")
        self.categories = label_names((), sorted(self.values) if categories is None else categories)
        unknown = sorted(set(self.categories) - set(self.values))
        if unknown or not self.categories:
            raise ValueError(
                f"{self.root / 'classes.json'} does not name {unknown}, known: "
                f"{', '.join(sorted(self.values))}."
            )
        self.sketches: dict[str, list[Path]] = {name: [] for name in self.categories}
        for sketch in scan(self.root / "sketches", HOW_TO_GET):
            if sketch.category in self.sketches:
                self.sketches[sketch.category].append(sketch.path)
        lacking = sorted(name for name, paths in self.sketches.items() if not paths)
        if lacking:
            raise FileNotFoundError(
                f"{self.root / 'sketches'} has no sketch of {', '.join(lacking)}. {HOW_TO_GET}"
            )
        self.queries: list[tuple[Path, str]] = []
        self.held: dict[Path, frozenset[str]] = {}
        self.vanished: list[tuple[Path, str]] = []
        wanted = dict.fromkeys(self.categories, math.inf if limit is None else limit)
        disable = None if progress else True
        for photo in tqdm(_photos(self.root / "photos"), desc="masks", disable=disable):
            mask = read_mask(self._mask_path(photo), self.values)
            # What is small counts: a photo that holds it in truth must not train on it.
            self.held[photo] = self._shown(mask)
            asked = [name for name in wanted if name in self.held[photo]]
            left = self._shown(self._padded(mask)) if asked else frozenset()
            for name in asked:
                if name not in left:
                    self.vanished.append((photo, name))
                    continue
                self.queries.append((photo, name))
                wanted[name] -= 1
            wanted = {name: count for name, count in wanted.items() if count}
            if not wanted:
                break
        self._label()
        self._tell_vanished()

    def only(
        self, categories: Sequence[str], repeats: int = 1, without: Sequence[str] = ()
    ) -> SketchSegmentation:
        """The photos that hold some of the categories, asked for these; no mask is read anew.

        Args:
            categories: Categories of this data set, in the order of the labels.
            repeats: Times that every photo is asked for every category.
            without: Categories whose photos are left out, whatever else these hold.

        Raises:
            ValueError: Other categories, none, or no photo holds any of them, or none of these is
                left.
        """
        if not categories or not set(categories) <= set(self.categories):
            raise ValueError(
                f"expected some of {', '.join(self.categories)}, got {list(categories)}."
            )
        part = copy(self)
        part.categories, part.repeats = label_names((), categories), repeats
        part.sketches = {name: self.sketches[name] for name in part.categories}
        asked = [query for query in self.queries if query[1] in part.sketches]
        part.queries = [query for query in asked if self.held[query[0]].isdisjoint(without)]
        if asked and not part.queries:
            raise ValueError(
                f"every photo in {self.root / 'photos'} that holds any of "
                f"{', '.join(part.categories)} holds one of {', '.join(without)} too, which are "
                "held out. Add photos without these, raise the limit, or hold others out by "
                "another seed of the split."
            )
        part._label()
        return part

    def picture_files(self) -> list[Path]:
        """All files that samples are read from."""
        photos = [photo for photo, _ in self.queries]
        masks = [self._mask_path(photo) for photo in photos]
        return [*photos, *masks, *chain(*self.sketches.values())]

    def _label(self) -> None:
        if not self.queries:
            lost = any(name in self.sketches for _, name in self.vanished)
            seen = f" of which {self.size} px leave a pixel; take a larger size" if lost else ""
            raise ValueError(
                f"no photo in {self.root / 'photos'} holds any of {', '.join(self.categories)}"
                f"{seen}."
            )
        labels = [self.categories.index(name) for _, name in self.queries]
        self.labels = torch.tensor(labels * self.repeats)

    def _tell_vanished(self) -> None:
        if not self.vanished:
            return
        photo, name = self.vanished[0]
        warnings.warn(
            f"{len(self.vanished)} of {len(self.vanished) + len(self.queries)} queries are left "
            f"out: resized to {self.size} px, the mask has no pixel of what is asked for (the "
            f"first: {name} in {photo}). A larger size keeps more.",
            stacklevel=3,
        )

    def __len__(self) -> int:
        return len(self.queries) * self.repeats

    def __getitem__(self, index: int) -> dict[str, Any]:
        repeat, item = divmod(range(len(self))[index], len(self.queries))
        photo, name = self.queries[item]
        sketches = self.sketches[name]
        sketch = sketches[seed_of(self.seed, photo.name, name, repeat) % len(sketches)]
        picture, labelled = open_image(photo), read_mask(self._mask_path(photo), self.values)
        if picture.size != labelled.shape[::-1]:
            raise ValueError(
                f"{self._mask_path(photo)} is {labelled.shape[1]} x {labelled.shape[0]}, expected "
                f"{picture.width} x {picture.height} like {photo} (after its EXIF rotation)."
            )
        mask = torch.from_numpy(self._padded(labelled))
        return {
            "sketch": self._read(sketch, open_image(sketch)),
            "photo": self._read(photo, picture),
            "mask": mask == self.values[name],
            "valid": mask != IGNORED,
            "label": int(self.labels[item]),
            "instance": seed_of(photo.name),
            "key": f"{photo.name} {name}/{sketch.name}",
        }

    def _mask_path(self, photo: Path) -> Path:
        return self.root / "masks" / f"{photo.stem}.png"

    def _read(self, path: Path, picture: Image.Image) -> Tensor:
        # What cannot be resized is told with its file.
        with skipping(None, path):
            return to_tensor(picture, self.size)

    def _shown(self, mask: NDArray[np.uint8]) -> frozenset[str]:
        """Categories that a mask ``[H, W]`` has pixels of."""
        present = set(np.unique(mask).tolist())
        return frozenset(name for name, value in self.values.items() if value in present)

    def _padded(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A mask ``[H, W]`` as it lies in the sample, ``[S, S]``."""
        from PIL import Image, ImageOps

        if round(self.size * min(mask.shape) / max(mask.shape)) < 1:
            # Nothing of a photo so long is left; Pillow refuses to resize it.
            return np.full((self.size, self.size), IGNORED, np.uint8)
        side, nearest = (self.size, self.size), Image.Resampling.NEAREST
        return np.array(ImageOps.pad(Image.fromarray(mask), side, nearest, color=IGNORED))


def read_classes(path: Path) -> dict[str, int]:
    """Read the values that categories have in the masks.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It is not an object of distinct integers of 1..254.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {HOW_TO_GET}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if (
        not isinstance(values, dict)
        or not values
        or not all(type(value) is int and 0 < value < IGNORED for value in values.values())
        or len(set(values.values())) < len(values)
    ):
        raise ValueError(
            f"{path}: expected categories with distinct values of 1..{IGNORED - 1}, got {values}."
        )
    return values


def read_mask(path: Path, values: Mapping[str, int]) -> NDArray[np.uint8]:
    """Read a mask.

    Returns:
        ``[H, W]``: values of categories, 0 for none, 255 for ignored.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It has not one byte per pixel, or values of no category.
    """
    from PIL import Image

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {HOW_TO_GET}")
    try:
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            samples = stored_as(image)
            # A palette's indices are the values; converting it would turn them into colours.
            mode, mask = image.mode, np.array(image) // SPREAD_GREY.get(samples, 1)
    # Pillow's readers raise whatever they stumble over in a damaged file.
    except Exception as error:
        raise ValueError(f"{path} is damaged or no picture: {error}") from error
    if mode not in ("L", "P"):
        raise ValueError(
            f"{path}: expected one byte per pixel (Pillow's mode L or P), got mode {mode}."
        )
    unknown = sorted(set(np.unique(mask).tolist()) - {0, IGNORED, *values.values()})
    if unknown:
        raise ValueError(f"{path} holds the values {unknown}, which classes.json does not name.")
    return mask


def _photos(folder: Path) -> list[Path]:
    """Photos by name; hidden files are passed over."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing. {HOW_TO_GET}")
    photos = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    seen: set[str] = set()
    for photo in photos:
        if photo.stem in seen:
            raise ValueError(
                f"{photo}: another photo has the same stem, so masks cannot tell them apart. "
                "Rename one, and its mask."
            )
        seen.add(photo.stem)
    return photos
