"""Columns of the table: parts of strokes, parts of drawings, and search by sketch on a canvas."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from figures import Scores
from judged_data import CANVAS, PARTS, Scenes
from judged_model import BATCH, JudgedModel
from judged_sketches import PartDrawings
from probes import LinearProbe
from scenes import best_quadrants
from sources import SIZE
from torch import Tensor
from training import normalise

from sketchfusion_plugins.heads.query import ink_cells, pool_sketch
from sketchfusion_plugins.metrics.query_segmentation import (
    fit_threshold,
    query_segmentation_scores,
)
from sketchfusion_plugins.stroke_metrics import majority_baseline

STROKE_POINTS = 16
PIXELS = 64
# Similarities are compared on this grid, whatever the map's own.
GRID = 64


def spg(model: JudgedModel) -> dict[str, Scores]:
    """Part of every point of a stroke, by linear probes on the map there.

    ``known`` tells a drawing's parts apart among those of its class, as the literature does, with a
    probe that was fitted so; ``86-way`` tells class and part.
    """
    fit, test = model.data.part_drawings
    classes = len(fit.category)
    generator = torch.Generator().manual_seed(0)
    features, labels = [], []
    for maps, drawings in _with_maps(model, fit):
        for features_map, index in zip(maps, drawings, strict=True):
            rows = fit.points.rows(index)
            count = rows.stop - rows.start
            chosen = rows.start + torch.randperm(count, generator=generator)[:STROKE_POINTS]
            features.append(_at(features_map, fit.points.xy[chosen]))
            labels.append(fit.points.label[chosen])
    x, y = torch.cat(features), torch.cat(labels)
    allowed = fit.category[y][:, None] == fit.category
    probes = {
        "known": LinearProbe(x, y, classes, allowed),
        f"{classes}-way": LinearProbe(x, y, classes),
    }
    right: dict[str, list[int]] = {name: [] for name in probes}
    counts = []
    for maps, drawings in _with_maps(model, test):
        for features_map, index in zip(maps, drawings, strict=True):
            rows = test.points.rows(index)
            label = test.points.label[rows]
            descriptors = _at(features_map, test.points.xy[rows])
            counts.append(len(label))
            for name, fitted in probes.items():
                logits = fitted(descriptors)
                if name == "known":
                    other = test.category != test.category[label[0]]
                    logits = logits.masked_fill(other, -torch.inf)
                right[name].append(int((logits.argmax(1) == label).sum()))
    majority = majority_baseline(fit.points, test.points, test.category).point_accuracy
    commonest = torch.bincount(fit.points.label, minlength=classes).argmax()
    chances = (majority, float((test.points.label == commonest).float().mean()))
    return {
        f"SPG points, {name}": Scores.ratio(right[name], counts, chance)
        for name, chance in zip(probes, chances, strict=True)
    }


def parts(model: JudgedModel) -> dict[str, Scores]:
    """OpenMoji's `PARTS` of every pixel of a line drawing, by a linear probe on the map.

    The items are drawings; the figure is the mean over classes of the IoU over all pixels of all
    drawings. Chance: background everywhere.
    """
    fit_masks, test_masks = model.data.part_masks
    generator = torch.Generator().manual_seed(0)
    features, labels = [], []
    for features_map, mask in zip(model.seen_lines.maps, fit_masks, strict=True):
        rows, columns = torch.randint(SIZE, (2, PIXELS), generator=generator)
        features.append(_at(features_map, torch.stack([columns, rows], 1) + 0.5))
        labels.append(mask[rows, columns])
    fitted = LinearProbe(torch.cat(features), torch.cat(labels), len(PARTS))
    both, either, background = [], [], []
    batches = (model.queries.maps.split(BATCH), test_masks.split(BATCH))
    for maps, masks in zip(*batches, strict=True):
        logits = F.interpolate(fitted.maps(maps), (SIZE, SIZE), mode="bilinear")
        found = F.one_hot(logits.argmax(1), len(PARTS)).bool()
        truth = F.one_hot(masks, len(PARTS)).bool()
        both.append((found & truth).sum((1, 2)))
        either.append((found | truth).sum((1, 2)))
        background.append(truth[..., 0].sum((1, 2)))
    chance = float(torch.cat(background).sum()) / (len(test_masks) * SIZE**2) / len(PARTS)
    return {
        f"OpenMoji {len(PARTS)}-class mIoU": Scores.ratio(
            torch.cat(both), torch.cat(either), chance
        )
    }


def localisation(model: JudgedModel) -> dict[str, Scores]:
    """In which quadrant of a canvas the drawn concept is, and which pixels it covers.

    A quadrant counts by the mean of its most similar tenth. The threshold for pixels is fitted on
    scenes of seen concepts; chance there is to take everything.
    """
    fit, test = model.data.scenes
    fitted = _similarity(model, fit, model.data.seen_lines)
    # On the coarse grid, where it takes a sixteenth of the time.
    coarse = F.adaptive_avg_pool2d(fit.masks.float(), GRID) > 0.5
    threshold = fit_threshold([(fitted, coarse.long())])
    similarity = _similarity(model, test, model.data.queries)
    best = best_quadrants(similarity)
    scores = query_segmentation_scores(_enlarged(similarity) > threshold, test.masks.long())
    everything = float(test.masks.float().mean())
    return {
        "canvas, localisation": Scores.mean(best == test.quadrants, 0.25),
        "canvas, foreground IoU": Scores.mean(scores.foreground_iou, everything),
    }


def _similarity(model: JudgedModel, scenes: Scenes, drawings: Tensor) -> Tensor:
    """Cosine of the drawing's mean over its ink with every place, ``[N, GRID, GRID]``."""
    drawing_mean, picture_mean = model.map_means
    asked = drawings[scenes.drawings]
    found = []
    # A canvas is as much work as four pictures.
    size = BATCH // 4
    for pixels, sketch in zip(scenes.pixels.split(size), asked.split(size), strict=True):
        (photo,), (query,) = model.maps(pixels), model.maps(sketch)
        ink = ink_cells(normalise(sketch), (query.shape[2], query.shape[3]))
        descriptor = pool_sketch(query - drawing_mean, ink)
        cells = F.normalize(photo - picture_mean, dim=1)
        cosine = torch.einsum("bc,bchw->bhw", descriptor, cells)[:, None]
        found.append(F.interpolate(cosine, (GRID, GRID), mode="bilinear")[:, 0])
    return torch.cat(found)


def _enlarged(similarity: Tensor) -> Tensor:
    return F.interpolate(similarity[:, None], (CANVAS, CANVAS), mode="bilinear")[:, 0]


def _with_maps(model: JudgedModel, drawings: PartDrawings) -> Iterator[tuple[Tensor, range]]:
    """Maps of a batch at a time, with the numbers of its drawings."""
    start = 0
    for maps in model.maps(drawings.pixels):
        yield maps, range(start, start + len(maps))
        start += len(maps)


def _at(features: Tensor, xy: Tensor) -> Tensor:
    """Map ``[C, h, w]`` at points ``[N, 2]`` in pixels, ``[N, C]``."""
    grid = (xy / SIZE * 2 - 1).float()[None, None]
    sampled = F.grid_sample(features[None], grid, padding_mode="border", align_corners=False)
    return sampled[0, :, 0].T
