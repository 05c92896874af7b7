"""Data sets in folders as data of retrieval: which classes are trained on, which are searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sketchfusion_plugins.data import zero_shot
from sketchfusion_plugins.data.folder_tasks import (
    HELD_OUT,
    Augmented,
    Pictures,
    first_of_each,
    folder_of,
)
from sketchfusion_plugins.data.pictures import (
    Picture,
    PictureDataset,
    by_concept_split,
    of_categories,
)
from sketchfusion_plugins.data.task_data import SketchPhotoPairs, TaskData
from sketchfusion_plugins.images import to_tensor
from sketchfusion_plugins.metrics.retrieval import MEASURES


def retrieval(
    load: Callable[[Path], Pictures],
    protocol: str | None,
    by: str,
    source: str,
    size: int,
    seed: int,
    limit: int | None,
    own_category: bool = False,
) -> TaskData:
    """Retrieval in classes that training never saw: by class, or of the very photo.

    The very photo is searched among those of all these classes, with ``own_category`` among those
    of the sketch's class. A protocol's classes are found on both sides however they are spelt;
    without one, photos of classes that nobody sketched are searched too.
    """
    sketches, photos = (first_of_each(pictures, limit) for pictures in load(folder_of(source)))
    sketched = {sketch.category for sketch in sketches}
    if by == "instance":
        sketches, photos = (
            [picture for picture in pictures if picture.instance is not None]
            for pictures in (sketches, photos)
        )
    if not photos:
        raise FileNotFoundError(
            f"{folder_of(source)} holds sketches and no photos to search. Put the photos' folders, "
            "one per category, into its folder 'extended'."
        )
    names = sorted({picture.category for picture in photos})
    if protocol is None:
        seen, unseen = _seeded_classes(source, sketches, names, sketched, by, seed)
        measures: tuple[str, ...] = ("mAP@all", "P@100")
    else:
        seen, unseen = zero_shot.split_categories(names, protocol)
        measures = MEASURES[protocol]
        sketches = _spelt_alike(sketches, names)
        lacking = sorted(set(unseen) - {sketch.category for sketch in sketches})
        if lacking:
            raise FileNotFoundError(
                f"{folder_of(source)} has photos and no sketch of {', '.join(lacking)}, which "
                f"{protocol} holds out. Is the data set complete, and spelt alike in both?"
            )
    if by == "instance":
        measures = MEASURES["fine_grained"]

    def pick(pictures: Sequence[Picture], names: Sequence[str], transform: Any) -> PictureDataset:
        return PictureDataset(of_categories(pictures, names), names, transform)

    plain, augmented = partial(to_tensor, size=size), Augmented(size)
    return TaskData(
        "retrieval",
        source,
        size,
        train=SketchPhotoPairs(pick(sketches, seen, augmented), pick(photos, seen, augmented), by),
        fit=SketchPhotoPairs(pick(sketches, seen, plain), pick(photos, seen, plain), by),
        test=pick(sketches, unseen, plain),
        gallery=pick(photos, unseen, plain),
        categories=tuple(unseen),
        measures=measures,
        label=by,
        own_category=own_category,
    )


def _seeded_classes(
    source: str,
    sketches: Sequence[Picture],
    names: list[str],
    sketched: set[str],
    by: str,
    seed: int,
) -> tuple[list[str], list[str]]:
    """Classes to train on and to judge, of ``names``; those that nobody sketched are searched too.

    Raises:
        FileNotFoundError: A part has no sketch.
        ValueError: Too few classes.
    """
    both = [name for name in names if name in sketched]
    # Among pictures of one class every ranking is perfect.
    fewest = 2 if by == "label" else 1
    if len(both) < 2 * fewest:
        raise ValueError(
            f"retrieval by {by} needs {2 * fewest} classes, half of them to search in; "
            f"{folder_of(source)} has {len(both)} with sketches and photos."
        )
    # By class and of the very photo the same is held out, wherever both can be searched.
    seen, unseen = by_concept_split(both, HELD_OUT, seed)
    for part in (seen, unseen):
        if not any(sketch.category in part for sketch in sketches):
            raise FileNotFoundError(
                f"{folder_of(source)} has no sketch of {', '.join(part)} that is named after its "
                "photo, as <photo>.png or <photo>-<number>.png."
            )
    return seen, sorted([*unseen, *(name for name in names if name not in sketched)])


def _spelt_alike(sketches: Sequence[Picture], names: Sequence[str]) -> list[Picture]:
    """Sketches of the named categories, which come from another archive, in the names' spelling."""
    spelt = {zero_shot.canonical(name): name for name in names}
    named = [(spelt.get(zero_shot.canonical(sketch.category)), sketch) for sketch in sketches]
    return [replace(sketch, category=name) for name, sketch in named if name is not None]
