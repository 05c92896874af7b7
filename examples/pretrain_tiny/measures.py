"""Columns of the table: retrieval, recognition, correspondence, spectrum; see also `segmenting`.

Every function takes a `JudgedModel` and gives scores by column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from figures import Scores
from judged_data import WARPS
from judged_model import BATCH, JudgedModel
from judged_sketches import Labelled
from probes import discriminant_scores
from segmenting import localisation, parts, spg
from sources import SIZE
from torch import Tensor
from torch.utils.data import default_collate

from sketchfusion_plugins.frequency import low_frequency_share
from sketchfusion_plugins.heads.matching import match_points
from sketchfusion_plugins.metrics.correspondence import Protocol, key_point_scores
from sketchfusion_plugins.metrics.recognition import top_k_correct
from sketchfusion_plugins.metrics.retrieval import score_embeddings

Columns = dict[str, Scores]
PCK = Protocol("tiny", SIZE, inclusive=True, alphas=(5, 10))
# With which all rows were measured; smaller ones are better for all, see `match_points`.
RADIUS = 7
NEIGHBOURS = 10
RANKS = (1, 5)


def retrieval(model: JudgedModel) -> Columns:
    """A warped line drawing finds the picture of its concept by another artist.

    Queries are centred by the mean of seen drawings, galleries by that of seen pictures: of artists
    whose concepts were seen, so that a style that was never seen stays unknown.
    """
    data = model.data
    queries = model.embed(data.queries, model.queries)
    seen = len(model.seen_lines.maps)
    lines = model.embed(data.seen_lines[:seen], model.seen_lines)[:seen]
    pictures = model.embed(data.seen_pictures, model.seen_pictures)
    columns: Columns = {}
    for artist, gallery in data.galleries.items():
        found = model.embed(gallery.pixels, model.galleries[artist]) - pictures.mean(0)
        labels = torch.arange(len(data.drawings[1])).repeat(WARPS)
        asked = torch.isin(labels, gallery.labels)
        measures = tuple(f"Acc@{k}" for k in RANKS)
        scores = score_embeddings(
            queries[asked] - lines.mean(0), found, labels[asked], gallery.labels, measures
        )
        for k, name in zip(RANKS, measures, strict=True):
            values = scores.values[name].unflatten(0, (WARPS, -1)).mean(0)
            columns[f"line -> {artist} {name}"] = Scores.mean(values, k / len(found))
    return columns


def recognition(model: JudgedModel) -> Columns:
    """Linear probes: OpenMoji's subgroup of a warped line drawing; Quick, Draw!'s classes."""
    seen, held = model.data.subgroups
    classes = int(seen.max()) + 1
    used = seen >= 0
    known = (held >= 0).repeat(WARPS)
    truth = held.repeat(WARPS)[known]
    scores = discriminant_scores(
        model.seen_lines.descriptors[used],
        seen[used],
        model.queries.descriptors[known],
        classes,
    )
    right = top_k_correct(scores, truth).unflatten(0, (WARPS, -1)).float().mean(0)
    fit, test = model.data.sketches
    scores_of_sketches = discriminant_scores(
        model.describe(fit.pixels), fit.labels, model.describe(test.pixels), _classes(fit)
    )
    return {
        f"subgroup of {classes}": Scores.mean(right, 1 / classes),
        _sketch_column(fit): Scores.mean(
            top_k_correct(scores_of_sketches, test.labels), _guess(fit)
        ),
    }


def neighbours(model: JudgedModel) -> Columns:
    """Quick, Draw! without training: the majority among the nearest drawings."""
    from sklearn.neighbors import KNeighborsClassifier

    fit, test = model.data.sketches
    classifier = KNeighborsClassifier(NEIGHBOURS)
    classifier.fit(model.describe(fit.pixels).numpy(), fit.labels.numpy())
    found = torch.from_numpy(classifier.predict(model.describe(test.pixels).numpy()))
    return {_sketch_column(fit): Scores.mean(found == test.labels, _guess(fit))}


def correspondence(model: JudgedModel) -> Columns:
    """Points of a line drawing in its strongly warped picture."""
    pairs = model.data.correspondence
    drawing_mean, picture_mean = model.map_means
    total, near = None, torch.zeros(2)
    counted = 0
    for start in range(0, len(pairs), BATCH):
        chosen = range(start, min(start + BATCH, len(pairs)))
        batch = default_collate([pairs[index] for index in chosen])
        source, target = (_encode(model, batch[name]) for name in ("source", "target"))
        found = match_points(
            source - drawing_mean,
            target - picture_mean,
            batch["source_points"],
            source_stride=_stride(source),
            target_stride=_stride(target),
            visible=batch["visible"],
            radius=RADIUS,
        )
        true, visible = batch["target_points"], batch["visible"]
        scores = key_point_scores(found, true, (SIZE, SIZE), PCK, visible)
        total = scores if total is None else total + scores
        points = true[visible]
        near += _guessed(points)
        counted += len(points)
    assert total is not None
    return {
        f"PCK@{alpha:g}": Scores.mean(total.items[:, index], float(near[index] / counted))
        for index, alpha in enumerate(PCK.alphas)
    }


def spectrum(model: JudgedModel) -> Columns:
    """Share of energy below a quarter of Nyquist, at the map's own grid, without the mean."""
    maps = {"drawings": model.queries.maps, "pictures": model.galleries["Noto"].maps}
    return {
        f"low-frequency share, {name}": Scores.mean(low_frequency_share(own).nan_to_num(1.0))
        for name, own in maps.items()
    }


def segmentation(model: JudgedModel) -> Columns:
    """SPG's parts, OpenMoji's parts, and search on a canvas."""
    return {**spg(model), **parts(model), **localisation(model)}


GROUPS: Mapping[str, Callable[[JudgedModel], Columns]] = {
    "retrieval": retrieval,
    "recognition": recognition,
    "correspondence": correspondence,
    "segmentation": segmentation,
    "spectrum": spectrum,
}


def _encode(model: JudgedModel, images: Tensor) -> Tensor:
    with torch.no_grad():
        maps: Tensor = model.features(images.to(model.device)).float().cpu()
    return maps


def _stride(maps: Tensor) -> tuple[float, float]:
    return SIZE / maps.shape[-2], SIZE / maps.shape[-1]


def _guessed(points: Tensor) -> Tensor:
    """How many pixels' centres lie near enough to every point, as a share, summed: ``[2]``."""
    centres = torch.arange(SIZE) + 0.5
    grid = torch.cartesian_prod(centres, centres)
    limits = [alpha / 100 * SIZE for alpha in PCK.alphas]
    distance = torch.cdist(points.float(), grid)
    return torch.stack([(distance <= limit).float().mean(1).sum() for limit in limits])


def _classes(fit: Labelled) -> int:
    return int(fit.labels.max()) + 1


def _guess(fit: Labelled) -> float:
    return 1 / _classes(fit)


def _sketch_column(fit: Labelled) -> str:
    return f"Quick, Draw! {_classes(fit)}"
