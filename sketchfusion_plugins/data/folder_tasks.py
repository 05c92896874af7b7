"""Data sets in folders as data of the tasks; the module of a data set shows its layout.

Retrieval's are in `folder_retrieval`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Subset

from sketchfusion_plugins.data.pictures import (
    Picture,
    PictureDataset,
    by_concept_split,
    scan,
    seed_of,
    some_of,
)
from sketchfusion_plugins.data.psc6k import (
    CorrespondenceDataset,
    KeyPointPair,
    Part,
    ProtocolName,
    load_psc6k,
)
from sketchfusion_plugins.data.quickdraw import QuickDraw
from sketchfusion_plugins.data.row_split import held_out_rows, places, present
from sketchfusion_plugins.data.segmentation_pairs import (
    HOW_TO_GET,
    SketchSegmentation,
    read_classes,
)
from sketchfusion_plugins.data.sketchy import load_sketchy
from sketchfusion_plugins.data.strokes import StrokeStyle
from sketchfusion_plugins.data.task_data import REPEATS, TaskData
from sketchfusion_plugins.data.tuberlin import load_tuberlin
from sketchfusion_plugins.data.warps import AUGMENTATION, random_warp
from sketchfusion_plugins.images import to_tensor
from sketchfusion_plugins.problems import Problems

HELD_OUT = 0.3
VARIATION = {"stroke_dropout": 0.05, "perturbation": 0.3}
Pictures = tuple[list[Picture], list[Picture]]
Item = TypeVar("Item", Picture, KeyPointPair)


class Augmented:
    """Pillow image to a tensor, slightly warped, differently at every call.

    Args:
        size: Side of the image in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Any) -> Tensor:
        """Image ``[3, size, size]`` in -1..1."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        return random_warp(generator, AUGMENTATION).image(to_tensor(image, self.size))


def recognition(
    load: Callable[[Path], Pictures],
    source: str,
    size: int,
    seed: int,
    limit: int | None,
) -> TaskData:
    """Sketches of known classes; a part of each class is held out.

    Which part follows from the file's name; sketches of one photo stay together. A warning tells
    which classes lie in one part alone.
    """
    pictures = first_of_each(load(folder_of(source))[0], limit)
    train: list[Picture] = []
    test: list[Picture] = []
    for picture in pictures:
        name = picture.instance or picture.path.name
        share = seed_of(seed, picture.category, name) / 2**63
        (test if share < HELD_OUT else train).append(picture)
    for part, kept in (("train", train), ("test", test)):
        if not kept:
            raise ValueError(
                f"{folder_of(source)} has no sketch for the part {part!r} of recognition: a hash "
                f"of names holds out {HELD_OUT:.0%}, and of {len(pictures)} it leaves none there. "
                "Add sketches, raise the limit, or take another seed of the split."
            )
    _tell_one_sided(source, (p.category for p in train), (p.category for p in test))
    names = sorted({picture.category for picture in pictures})
    plain = partial(to_tensor, size=size)
    return TaskData(
        "recognition",
        source,
        size,
        train=PictureDataset(train, names, Augmented(size)),
        fit=PictureDataset(train, names, plain),
        test=PictureDataset(test, names, plain),
        categories=tuple(names),
        measures=("Acc@1", "Acc@5"),
    )


def sketchy(folder: Path) -> Pictures:
    """Sketches and photos; those beyond what was sketched lie in ``extended``, if at all."""
    return load_sketchy(folder, extended=_extended(folder))


def tuberlin(folder: Path) -> Pictures:
    """Sketches and photos; photos lie in ``extended``, if at all."""
    return load_tuberlin(folder, extended=_extended(folder))


def quickdraw_recognition(source: str, size: int, seed: int, limit: int | None) -> TaskData:
    """Quick, Draw! in any of its layouts; a part of each class is held out.

    Which part follows from a drawing's row among those of its class that can be read, whatever the
    limit and the classes. Others are left out with a warning; another tells which classes lie in
    one part alone.
    """
    transform = partial(to_tensor, size=size)
    problems = Problems()
    plain = QuickDraw(
        folder_of(source), StrokeStyle(size), transform, limit=limit, problems=problems
    )
    if problems.found:
        warnings.warn(
            f"drawings that cannot be read are left out: {len(problems.found)}, the first "
            f"{problems.first}",
            stacklevel=2,
        )
    labels = plain.drawings.labels
    held_out = held_out_rows(seed, plain.categories, labels, HELD_OUT)
    train, test = places(~held_out), places(held_out)
    data = TaskData(
        "recognition",
        source,
        size,
        train=Subset(plain.restyled(StrokeStyle(size, **VARIATION)), train),
        fit=Subset(plain, train),
        test=Subset(plain, test),
        categories=plain.categories,
        measures=("Acc@1", "Acc@5"),
    )
    parts = (present(plain.categories, labels[part]) for part in (~held_out, held_out))
    _tell_one_sided(source, *parts)
    return data


def psc6k(protocol: ProtocolName, source: str, size: int, seed: int, limit: int | None) -> TaskData:
    """PSC6K; its annotations lie beside Sketchy's folders ``photo`` and ``sketch``.

    Nothing is warped for training: what is fitted and what is trained on are the same.
    """
    folder = folder_of(source)
    names = ("test_pairs_ps.csv", "test_pairs_st.csv")
    found = [folder / name for name in names if (folder / name).is_file()]
    annotations = found[0] if found else folder / names[0]

    def pairs(split: Part) -> CorrespondenceDataset:
        kept = first_of_each(load_psc6k(annotations, protocol, split), limit)
        return CorrespondenceDataset(kept, folder, size)

    train = None if protocol == "pscnet" else pairs("train")
    return TaskData(
        "correspondence",
        source,
        size,
        train=train,
        fit=train,
        test=pairs("test"),
        measures=("PCK@1", "PCK@5", "PCK@10"),
        protocol=protocol,
    )


def query_segmentation(source: str, size: int, seed: int, limit: int | None) -> TaskData:
    """Photos with masks; categories are split, since a sketch should find what is new.

    A photo that holds a held-out category is judged and never trained on, whatever else it holds:
    else training would see what is to be found, and call it background. Categories that nobody
    sketched are background too, with a warning.

    Nothing is warped for training, which sees the same photos with `REPEATS` choices of sketches.
    """
    folder = folder_of(source)
    classes = read_classes(folder / "classes.json")
    drawn = {sketch.category for sketch in scan(folder / "sketches", HOW_TO_GET)}
    sketched = sorted(drawn.intersection(classes))
    if len(sketched) < 2:
        raise FileNotFoundError(
            "query segmentation needs sketches of two categories of classes.json, one of them to "
            f"hold out; {folder / 'sketches'} has {', '.join(sketched) or 'none'}, of "
            f"{some_of(classes)}. {HOW_TO_GET}"
        )
    if len(sketched) < len(classes):
        warnings.warn(
            f"{folder / 'sketches'} has no sketch of {some_of(set(classes) - drawn)}, which are "
            "background where masks name them. Add sketches to ask for them.",
            stacklevel=2,
        )
    seen, unseen = by_concept_split(sketched, HELD_OUT, seed)
    data = SketchSegmentation(folder, size, sketched, seed=seed, limit=limit)
    return TaskData(
        "query_segmentation",
        source,
        size,
        train=data.only(seen, REPEATS, without=unseen),
        fit=data.only(seen, without=unseen),
        test=data.only(unseen),
        categories=tuple(unseen),
        measures=("foreground IoU", "mIoU", "pixel accuracy"),
    )


def first_of_each(items: list[Item], limit: int | None) -> list[Item]:
    """The first items of every class."""
    if limit is None:
        return items
    seen: Counter[str] = Counter()
    kept = []
    for item in items:
        seen[item.category] += 1
        if seen[item.category] <= limit:
            kept.append(item)
    return kept


def _tell_one_sided(source: str, trained: Iterable[str], judged: Iterable[str]) -> None:
    """Warn of classes that are judged and not trained on, and of the reverse."""
    training, test = set(trained), set(judged)
    for names, lacking, but in (
        (test - training, "to train on", "judged"),
        (training - test, "to judge", "trained on"),
    ):
        if names:
            warnings.warn(
                f"{folder_of(source)} has no sketch {lacking} of {some_of(names)}, which are "
                f"{but} all the same. Add sketches, or raise the limit.",
                stacklevel=3,
            )


def folder_of(source: str) -> Path:
    """Folder of ``NAME:FOLDER``."""
    return Path(source.partition(":")[2]).expanduser()


def _extended(folder: Path) -> Path | None:
    """The photos beyond those that sketches were drawn from, if they are there."""
    return folder / "extended" if (folder / "extended").is_dir() else None
