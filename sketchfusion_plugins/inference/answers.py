"""What trained models and plain features say about single pictures, in the pictures' own pixels.

Every picture is padded to a square; answers are mapped back exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sketchfusion_plugins.features import Features, pixel_similarity
from sketchfusion_plugins.heads.cells import sample_descriptors
from sketchfusion_plugins.heads.matching import Matches, match_mutually, match_points
from sketchfusion_plugins.heads.query import PAPER, ink_cells
from sketchfusion_plugins.images import flatten_image, to_tensor
from sketchfusion_plugins.inference.picture_files import read_batches
from sketchfusion_plugins.inference.placement import Placement
from sketchfusion_plugins.problems import Problems
from sketchfusion_plugins.tasks.base import Task
from sketchfusion_plugins.tasks.query_segmentation import QuerySegmentation
from sketchfusion_plugins.tasks.recognition import Recognition
from sketchfusion_plugins.tasks.retrieval import Retrieval
from sketchfusion_plugins.wrappers import device_of

if TYPE_CHECKING:
    from PIL import Image

Model = Task | Features
# How much darker than paper, in -1..1, pale lines are at least: less is noise of a scan or of JPEG.
FAINTEST = 0.04


@torch.inference_mode()
def describe(model: Model, images: Tensor) -> Tensor:
    """One descriptor of unit length per image: a retrieval task's embedding, else pooled features.

    Args:
        model: The model.
        images: ``[B, 3, H, W]`` in -1..1.

    Returns:
        ``[B, D]``, float32, on the CPU.
    """
    images = images.to(device_of(model))
    found = model(images) if isinstance(model, Retrieval) else features_of(model).describe(images)
    result: Tensor = found.float().cpu()
    return result


def describe_files(
    model: Model,
    paths: Sequence[Path],
    size: int,
    problems: Problems,
    *,
    batch_size: int = 16,
    progress: bool = True,
) -> Iterator[tuple[list[Path], Tensor]]:
    """Descriptors of picture files, batch by batch.

    Args:
        model: The model.
        paths: Files.
        size: Side, in pixels, of the square that pictures are padded to.
        problems: Collects files that are no pictures.
        batch_size: Pictures per step.
        progress: Show a progress bar, when standard error is a terminal.

    Yields:
        Files that could be read, and their descriptors ``[B, D]``.
    """
    for readable, images in read_batches(paths, size, problems, batch_size, "describing", progress):
        yield readable, describe(model, images)


@torch.inference_mode()
def recognise_files(
    model: Model,
    paths: Sequence[Path],
    size: int,
    problems: Problems,
    *,
    top: int = 5,
    batch_size: int = 16,
    progress: bool = True,
) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """Likeliest classes of picture files with their probabilities, best first.

    Args:
        model: A recognition task.
        paths: Files.
        size: Side, in pixels, of the square that pictures are padded to.
        problems: Collects files that are no pictures.
        top: Classes wanted.
        batch_size: Pictures per step.
        progress: Show a progress bar, when standard error is a terminal.

    Raises:
        ValueError: The model knows no classes.
    """
    if not isinstance(model, Recognition):
        raise ValueError(
            f"expected a model trained for recognition, got {_kind(model)}, which knows no "
            "classes. Train one with: sketchfusion train recognition"
        )
    top = min(top, len(model.classes))
    for readable, images in read_batches(
        paths, size, problems, batch_size, "recognising", progress
    ):
        shares = model(images.to(device_of(model))).float().softmax(1).topk(top)
        for path, values, classes in zip(readable, *shares, strict=True):
            yield (
                path,
                [
                    (model.classes[index], value)
                    for value, index in zip(values.tolist(), classes.tolist(), strict=True)
                ],
            )


@torch.inference_mode()
def match_pictures(
    model: Model,
    sketch: Image.Image,
    photo: Image.Image,
    size: int,
    *,
    points: Tensor | None = None,
    count: int = 8,
    mutual: bool = False,
) -> Matches:
    """Where a sketch's points lie in a photo.

    Both pictures are put upright first, as their EXIF data say: all points are in that frame.

    Args:
        model: The model.
        sketch: The sketch, dark on white.
        photo: The photo.
        size: Side, in pixels, of the square that both are padded to.
        points: ``[N, 2]`` as ``(x, y)`` in the upright sketch's own pixels; None chooses them on
            its ink.
        count: Points to choose.
        mutual: Choose cells that are each other's nearest neighbour, instead of points that are
            spread over the ink.

    Returns:
        Points in the two upright pictures' own pixels, and their cosine similarity, on the CPU. A
        point that was found in the photo's padding is moved to its nearest edge.

    Raises:
        ValueError: No ink to choose points on, a point outside the sketch, or points and ``mutual``
            together.
    """
    if mutual and points is not None:
        raise ValueError("mutual neighbours are cells of the maps; give points or mutual, not both")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    sketch, photo = flatten_image(sketch), flatten_image(photo)
    source, target = (_square(model, image, size) for image in (sketch, photo))
    origin, goal = (Placement(*image.size, size) for image in (sketch, photo))
    features = features_of(model)
    source_map, target_map = features(source).float(), features(target).float()
    source_stride = features.cell_size(source, source_map)
    target_stride = features.cell_size(target, target_map)
    if mutual:
        found = match_mutually(
            source_map, target_map, source_stride=source_stride, target_stride=target_stride
        )[0]
        limit = _ink_limit(origin.crop(source[0].amin(0)))
        ink = ink_cells(source, source_map.shape[2:], source_stride, limit)[0]
        columns, rows = (found.source / found.source.new_tensor(source_stride[::-1])).long().T
        kept = ink[rows, columns] & origin.inside(found.source) & goal.inside(found.target)
        start, end, score = (values[kept][:count] for values in found)
        if not len(start):
            raise ValueError("no cell with ink has a mutual nearest neighbour in the photo.")
    else:
        if points is None:
            start = spread_over_ink(source[0].cpu(), origin, count).to(source.device)
        else:
            start = origin.to_square(_checked_points(points, sketch)).to(source.device)
        end = match_points(
            source_map,
            target_map,
            start[None],
            source_stride=source_stride,
            target_stride=target_stride,
        )[0]
        end = goal.to_square(goal.to_image(end))
        first = sample_descriptors(source_map, start[None], source_stride)[0]
        second = sample_descriptors(target_map, end[None], target_stride)[0]
        score = (first * second).sum(1)
    given = origin.to_image(start).cpu() if points is None else points.float()
    return Matches(given, goal.to_image(end).cpu(), score.cpu())


@torch.inference_mode()
def segment_picture(
    model: Model,
    sketch: Image.Image,
    photo: Image.Image,
    size: int,
    threshold: float | None = None,
    photo_size: int | None = None,
) -> Tensor:
    """The part of a photo that a sketch denotes.

    Both pictures are put upright first, as their EXIF data say.

    Args:
        model: A query segmentation task, or any features.
        sketch: The sketch, dark on white.
        photo: The photo.
        size: Side, in pixels, of the square that the sketch is padded to.
        threshold: Cosine similarity above which a pixel belongs to it, -1..1; for features alone.
        photo_size: The photo's; ``size`` by default. In a photo of several things, each is then
            small: twice the size shows those of a quarter of it as large as the sketch.

    Returns:
        bool ``[height, width]`` of the upright photo itself, on the CPU.

    Raises:
        ValueError: The sketch has no ink; a threshold where the model has learned one, or none
            where it has not.
    """
    side = photo_size or size
    sketch, photo = flatten_image(sketch), flatten_image(photo)
    source, target = _square(model, sketch, size), _square(model, photo, side)
    light = Placement(*sketch.size, size).crop(source[0].amin(0).cpu())
    if not (light < _ink_limit(light)).any():
        raise ValueError("the sketch has no ink: nothing in it is darker than paper.")
    placement = Placement(*photo.size, side)
    if isinstance(model, QuerySegmentation):
        if threshold is not None:
            raise ValueError("this model has learned its threshold; leave it out.")
        return placement.enlarge(model(source, target)[0].float().cpu()) > 0
    if threshold is None or not -1 <= threshold <= 1:
        raise ValueError(
            f"{_kind(model)} has learned no threshold; give a cosine, -1 to 1, got {threshold}. Or "
            "train a model with: sketchfusion train query_segmentation"
        )
    cosine = pixel_similarity(features_of(model), source, target)
    return placement.enlarge(cosine[0].cpu() - threshold) > 0


def spread_over_ink(sketch: Tensor, placement: Placement, count: int) -> Tensor:
    """Points on a sketch's ink, each as far as can be from those before it.

    Thin lines of a large drawing turn pale where it is shrunk: if nothing is as dark as ink, what
    is nearer to the darkest pixel than to the paper counts.

    Args:
        sketch: ``[3, side, side]`` in -1..1, on white.
        placement: Where the sketch lies in the square.
        count: Points wanted; fewer come where there are fewer pixels with ink.

    Returns:
        Centres of pixels ``[N, 2]`` in the square, the one nearest the ink's mean first.

    Raises:
        ValueError: There is no ink.
    """
    light = sketch.amin(0)
    rows, columns = (light < _ink_limit(placement.crop(light))).nonzero().unbind(1)
    ink = torch.stack([columns, rows], 1).float() + 0.5
    ink = ink[placement.inside(ink)]
    if not len(ink):
        raise ValueError("the sketch has no ink: nothing in it is darker than paper. Give points.")
    chosen = [ink[(ink - ink.mean(0)).norm(dim=1).argmin()]]
    distance = (ink - chosen[0]).norm(dim=1)
    while len(chosen) < count and distance.max() > 0:
        chosen.append(ink[distance.argmax()])
        distance = distance.minimum((ink - chosen[-1]).norm(dim=1))
    return torch.stack(chosen)


def _ink_limit(light: Tensor) -> float:
    """What pixels ``[h, w]`` of a sketch, in -1..1, are darker than where they are ink."""
    # Paper is what nine tenths are not lighter than: thin lines may fill a narrow picture's half.
    paper = float(light.flatten().kthvalue(max(1, light.numel() * 9 // 10)).values)
    darkest = float(light.min())
    if darkest < PAPER:
        return PAPER
    return (darkest + paper) / 2 if paper - darkest > FAINTEST else darkest


def features_of(model: Model) -> Features:
    """A model's map, without its head."""
    return model.features if isinstance(model, Task) else model


def _kind(model: Model) -> str:
    return f"one for {model.name}" if isinstance(model, Task) else type(model).__name__


def _square(model: Model, image: Image.Image, size: int) -> Tensor:
    return to_tensor(image, size)[None].to(device_of(model))


def _checked_points(points: Tensor, sketch: Image.Image) -> Tensor:
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"expected points [N, 2] as (x, y), got shape {list(points.shape)}.")
    points = points.float()
    width, height = sketch.size
    outside = ~((points >= 0) & (points <= points.new_tensor([width, height]))).all(1)
    if outside.any():
        x, y = points[outside][0].tolist()
        raise ValueError(
            f"the point {x:g},{y:g} lies outside the sketch, which is {width} x {height} px."
        )
    return points
