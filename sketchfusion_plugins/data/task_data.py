"""Data of a task: what is trained on, and what is judged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sketchfusion_plugins.data.layout import IGNORED
from sketchfusion_plugins.data.pictures import NO_INSTANCE

Samples = Dataset[dict[str, Any]]
# Visits of a concept that see warps of their own before they repeat.
REPEATS = 64


@dataclass(frozen=True)
class TaskData:
    """Data of one task.

    Attributes:
        task: Name of the task.
        source: Where it came from.
        size: Side of the images in pixels.
        train: What training draws batches from, with augmentation; None where a protocol has
            nothing to train on.
        test: What is judged; for retrieval the queries.
        fit: Training part without augmentation, for models that are fitted and not trained: a
            probe's pictures, a threshold's pairs.
        gallery: What retrieval searches.
        categories: Names of the labels.
        measures: Names of the measures.
        label: What makes a retrieved picture right, ``"instance"`` or ``"label"``.
        own_category: A query searches the gallery's pictures of its own ``label`` alone.
        protocol: Name of the correspondence protocol; empty for limits in percent of ``size``.
        split_seed: Seed of the split into what is trained on and what is judged; None if not known.

    Raises:
        ValueError: A part is empty.
    """

    task: str
    source: str
    size: int
    train: Samples | None
    test: Samples
    fit: Samples | None = None
    gallery: Samples | None = None
    categories: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    label: str = "instance"
    own_category: bool = False
    protocol: str = ""
    split_seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("train", "test", "fit", "gallery"):
            part = getattr(self, name)
            if part is not None and not len(part):
                raise ValueError(
                    f"{self.source} has nothing for the part {name!r} of {self.task}. Raise the "
                    "limit, or add data."
                )


class SketchPhotoPairs(Dataset[dict[str, Any]]):
    """Sketches, each with a photo of the same instance or category, drawn anew at every visit.

    A sketch without an instance, `sketchfusion_plugins.data.pictures.NO_INSTANCE`, has no photo of
    the same one.

    Samples: ``sketch`` and ``photo`` [3, H, W]; the sketch's ``label``, ``instance`` and ``key``.

    Args:
        sketches: Data set with ``labels`` and ``instances`` [N], whose samples have an ``image``.
        photos: The same.
        by: ``"instance"`` or ``"label"``.

    Raises:
        ValueError: Unknown ``by``, or no sketch has a photo.

    Attributes:
        by: What sketch and photo of a pair have in common.
    """

    def __init__(self, sketches: Any, photos: Any, by: str = "instance") -> None:
        if by not in ("instance", "label"):
            raise ValueError(f"by must be 'instance' or 'label', got {by!r}.")
        self.sketches, self.photos, self.by = sketches, photos, by
        wanted: Tensor = sketches.instances if by == "instance" else sketches.labels
        offered: Tensor = photos.instances if by == "instance" else photos.labels
        order = offered.argsort(stable=True)
        ordered = offered[order].contiguous()
        self.order = order
        self.first = torch.searchsorted(ordered, wanted.contiguous())
        self.count = torch.searchsorted(ordered, wanted.contiguous(), right=True) - self.first
        if by == "instance":
            # Photos without one have this number too.
            self.count[wanted == NO_INSTANCE] = 0
        self.usable = (self.count > 0).nonzero().squeeze(1)
        if not len(self.usable):
            raise ValueError(
                f"none of {len(wanted)} sketches has a photo of the same {by} among "
                f"{len(offered)} photos."
            )

    def __len__(self) -> int:
        return len(self.usable)

    def __getitem__(self, index: int) -> dict[str, Any]:
        chosen = int(self.usable[index])
        sketch = self.sketches[chosen]
        place = int(self.first[chosen] + torch.randint(int(self.count[chosen]), ()))
        photo = self.photos[int(self.order[place])]
        told = {name: value for name, value in sketch.items() if name != "image"}
        return {**told, "sketch": sketch["image"], "photo": photo["image"]}


def spread(data: Samples, most: int) -> Subset[dict[str, Any]]:
    """All items, or as many as are wanted at most, evenly spaced."""
    count = len(data)  # type: ignore[arg-type]
    kept = min(count, most)
    return Subset(data, [index * count // kept for index in range(kept)])


def sum_of_files(*parts: Samples | None) -> str | None:
    """A hash of the names and sizes of all files that parts of data are read from.

    It is the same wherever their common folder lies, and another once a picture was exchanged for
    one of another size in bytes: what is in the files is not read.
    None for parts that are read from no pictures in a folder.
    """
    paths = {path.absolute() for part in parts for path in _files(part)}
    try:
        root = os.path.commonpath(paths)
    except ValueError:
        # There are none, or they lie on several of Windows' drives.
        return None
    told = sorted(f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in paths)
    return hashlib.sha256("\n".join(told).encode(errors="surrogateescape")).hexdigest()[:8]


def _files(part: Any) -> Iterable[Path]:
    """Files of a part: what its data set's ``picture_files`` names, whatever wraps it."""
    if isinstance(part, Subset):
        return _files(part.dataset)
    if isinstance(part, SketchPhotoPairs):
        return chain(_files(part.sketches), _files(part.photos))
    files: Iterable[Path] = part.picture_files() if hasattr(part, "picture_files") else ()
    return files


def labelled_mask(batch: Mapping[str, Any]) -> Tensor:
    """Masks ``[B, H, W]`` of a batch: 1, 0, or 255 where its ``valid`` is False."""
    mask: Tensor = batch["mask"].long()
    return mask if "valid" not in batch else mask.where(batch["valid"], IGNORED)
