"""OpenMoji as data of the four tasks; whole families of concepts are held out."""

from __future__ import annotations

from collections import Counter

from torch.utils.data import ConcatDataset

from sketchfusion_plugins.data.openmoji_drawings import Drawings, load_drawings
from sketchfusion_plugins.data.openmoji_pairs import EmojiPictures, OpenMojiCorrespondence
from sketchfusion_plugins.data.openmoji_scenes import OpenMojiScenes
from sketchfusion_plugins.data.task_data import REPEATS, SketchPhotoPairs, TaskData
from sketchfusion_plugins.data.warps import AUGMENTATION, WarpConfig
from sketchfusion_plugins.metrics.retrieval import MEASURES

# A class with fewer drawings leaves too few to judge.
SMALLEST_CLASS = 10
# A scene is of four families, and its drawing of a fifth.
FAMILIES_OF_A_SCENE = 5


def recognition(source: str, size: int, seed: int, limit: int | None) -> TaskData:
    """Line drawings by subgroup; training sees coloured pictures of its concepts too."""
    drawings = load_drawings(size, limit=limit)
    counts = Counter(concept.subgroup for concept in drawings.concepts)
    kept = [
        index
        for index, concept in enumerate(drawings.concepts)
        if counts[concept.subgroup] >= (SMALLEST_CLASS if limit is None else 3)
    ]
    if len({drawings.concepts[index].subgroup for index in kept}) < 2:
        raise ValueError(
            f"limit {limit} leaves fewer than two subgroups with enough drawings to train on and "
            "to judge; raise it to 200 or more."
        )
    drawings = drawings.subset(kept)
    train, test = drawings.split()
    names = drawings.categories
    return TaskData(
        "recognition",
        source,
        size,
        train=ConcatDataset(
            EmojiPictures(train.concepts, pictures, names, AUGMENTATION, seed, REPEATS)
            for pictures in (train.line, train.color)
        ),
        fit=ConcatDataset(
            EmojiPictures(train.concepts, pictures, names) for pictures in (train.line, train.color)
        ),
        test=EmojiPictures(test.concepts, test.line, names),
        categories=names,
        measures=("Acc@1", "Acc@5"),
    )


def retrieval(source: str, size: int, seed: int, limit: int | None) -> TaskData:
    """The very concept by its line drawing, among warped coloured pictures."""
    train, test = _split(size, limit)
    return TaskData(
        "retrieval",
        source,
        size,
        train=SketchPhotoPairs(
            EmojiPictures(train.concepts, train.line, None, AUGMENTATION, seed, REPEATS),
            EmojiPictures(train.concepts, train.color, None, WarpConfig(), seed + 1, REPEATS),
        ),
        fit=SketchPhotoPairs(
            EmojiPictures(train.concepts, train.line),
            EmojiPictures(train.concepts, train.color, None, WarpConfig(), seed + 1),
        ),
        test=EmojiPictures(test.concepts, test.line),
        # Line and picture are aligned: without a warp a search would compare pixels.
        gallery=EmojiPictures(test.concepts, test.color, None, WarpConfig(), seed),
        categories=test.categories,
        measures=MEASURES["fine_grained"],
    )


def correspondence(source: str, size: int, seed: int, limit: int | None) -> TaskData:
    """Points of a line drawing in its warped coloured picture."""
    train, test = _split(size, limit)
    return TaskData(
        "correspondence",
        source,
        size,
        train=OpenMojiCorrespondence(
            train, points=16, source_warp=AUGMENTATION, seed=seed, repeats=REPEATS
        ),
        fit=OpenMojiCorrespondence(train, points=16, seed=seed),
        test=OpenMojiCorrespondence(test, points=8, seed=seed),
        categories=test.categories,
        measures=("PCK@5", "PCK@10"),
    )


def query_segmentation(source: str, size: int, seed: int, limit: int | None) -> TaskData:
    """The drawn concept in a scene of four coloured pictures."""
    train, test = _split(size, limit, FAMILIES_OF_A_SCENE)
    return TaskData(
        "query_segmentation",
        source,
        size,
        train=OpenMojiScenes(train, seed=seed, repeats=REPEATS),
        fit=OpenMojiScenes(train, seed=seed),
        test=OpenMojiScenes(test, seed=seed),
        categories=test.categories,
        measures=("foreground IoU", "mIoU", "pixel accuracy"),
    )


def _split(size: int, limit: int | None, families: int = 1) -> tuple[Drawings, Drawings]:
    """Training and held-out drawings of at least some families each."""
    train, test = load_drawings(size, limit=limit).split()
    fewest = min(len(set(side.family)) for side in (train, test))
    if fewest < families:
        raise ValueError(
            f"limit {limit} leaves too few drawings to train on and to judge: {fewest} families, "
            f"expected {families} or more of each. Raise it."
        )
    return train, test
