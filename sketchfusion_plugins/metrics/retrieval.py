"""Sketch-based image retrieval: mAP@k, P@k and Acc@k as the literature computes them.

The same names hide different formulas, see `sketchfusion_plugins.metrics.retrieval_definitions`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from sketchfusion_plugins.metrics.retrieval_definitions import Definition, find_definition

# Scores held at a time; the largest gallery of the literature has 204 thousand photos.
CHUNK_ELEMENTS = 2**23

MEASURES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # By the names of the shipped zero-shot splits. Sources: Yelamarthi et al., ECCV 2018;
        # Shen et al., CVPR 2018; Dey et al. (Doodle2Search), CVPR 2019.
        "sketchy_21": ("mAP@200", "P@200"),
        "sketchy_25": ("mAP@all", "P@100"),
        "tuberlin_30": ("mAP@all", "P@100"),
        "quickdraw_30": ("mAP@all", "P@200"),
        # Labels are instances, the gallery holds the photos of every category.
        "fine_grained": ("Acc@1", "Acc@5", "Acc@10"),
    }
)


@dataclass(frozen=True)
class RetrievalScores:
    """Measures of every query that has something to find.

    Attributes:
        values: By measure, such as ``"mAP@200"``: float64 ``[N]`` on the CPU, 0..1.
        queries: Rows of these N queries among all, ``[N]``.
        skipped: Queries without a relevant item in the gallery: no score, counted nowhere.
    """

    values: Mapping[str, Tensor]
    queries: Tensor
    skipped: int

    def mean(self, name: str, groups: Tensor | None = None) -> float:
        """Mean over queries, or over the means of groups of queries.

        Args:
            name: A measure.
            groups: Group of *every* query, skipped ones included, such as its class, ``[Q]``.
        """
        values = self.values[name]
        if groups is None:
            return float(values.mean())
        weights = group_weights(groups[self.queries])
        return float((values * weights).sum() / weights.sum())


def group_weights(groups: Tensor) -> Tensor:
    """Weights of items by which their mean is the mean over the means of groups.

    Args:
        groups: Group of every item, ``[N]``.

    Returns:
        1 over the size of the item's group, float64 ``[N]`` on the CPU.
    """
    _, group, sizes = groups.cpu().unique(return_inverse=True, return_counts=True)
    weights: Tensor = 1 / sizes[group].double()
    return weights


def score_embeddings(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    measures: Sequence[str] = ("mAP@all",),
    definition: str | Definition = "standard",
) -> RetrievalScores:
    """Rank a gallery by cosine similarity for every query and measure the rankings.

    On unit vectors Euclidean distance ranks the same. Scores are held for some queries at a time,
    so memory grows with the gallery, not with queries times gallery.

    Args:
        queries: Embeddings ``[Q, D]`` on any device.
        gallery: Embeddings ``[G, D]`` on the same device.
        query_labels: Classes or instances ``[Q]``; an item with the query's label is relevant.
        gallery_labels: The same, ``[G]``.
        measures: ``"mAP@all"``, ``"mAP@k"``, ``"P@k"``, ``"Acc@k"`` (share of queries with a
            relevant item in the top k); see ``MEASURES``.
        definition: A name, see `find_definition`, or one's own.

    Raises:
        ValueError: Shapes that do not fit, an empty gallery, an unknown measure, NaN, or no query
            with a relevant item.
    """
    labels = query_labels, gallery_labels
    return score_by_definitions(queries, gallery, *labels, measures, (definition,))[0]


def score_by_definitions(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    measures: Sequence[str],
    definitions: Sequence[str | Definition],
    device: torch.device | str | None = None,
    progress: bool = False,
) -> tuple[RetrievalScores, ...]:
    """`score_embeddings` by several definitions, in their order, of one ranking.

    Args:
        queries: See `score_embeddings`, as the next four.
        gallery: As above.
        query_labels: As above.
        gallery_labels: As above.
        measures: As above.
        definitions: Names, see `find_definition`, or one's own.
        device: Where similarities are ranked, which takes most of the time; None for where the
            embeddings are.
        progress: Show a progress bar.

    Raises:
        ValueError: See `score_embeddings`.
    """
    from tqdm import tqdm

    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"expected queries [Q, D] and gallery [G, D], got {list(queries.shape)} and "
            f"{list(gallery.shape)}."
        )
    for name, labels, rows in (
        ("query_labels", query_labels, len(queries)),
        ("gallery_labels", gallery_labels, len(gallery)),
    ):
        if labels.shape != (rows,):
            raise ValueError(f"expected {name} [{rows}], got {list(labels.shape)}.")
    _check_sizes(len(queries), len(gallery))
    unit_gallery = F.normalize(gallery.float(), dim=1)
    device = gallery.device if device is None else device
    gallery_labels = gallery_labels.to(device)
    step = max(1, CHUNK_ELEMENTS // len(gallery))

    def chunks() -> Iterator[tuple[Tensor, Tensor]]:
        starts = range(0, len(queries), step)
        for start in tqdm(starts, desc="ranking", disable=None if progress else True):
            chunk = F.normalize(queries[start : start + step].float(), dim=1)
            labels = query_labels[start : start + step].to(device)
            yield (chunk @ unit_gallery.T).to(device), labels[:, None] == gallery_labels

    return _score(chunks(), measures, definitions)


def score_rankings(
    scores: Tensor,
    relevant: Tensor,
    measures: Sequence[str] = ("mAP@all",),
    definition: str | Definition = "standard",
) -> RetrievalScores:
    """Measure rankings that are given by scores.

    Equal scores keep the gallery's order, so the result is the same on every run and device; a
    gallery sorted by class then favours some classes. Scores with many ties, such as those of
    binary codes, should be evaluated on a shuffled gallery.

    Args:
        scores: ``[Q, G]``, the higher the better: negate distances.
        relevant: Boolean ``[Q, G]``.
        measures: See `score_embeddings`.
        definition: See `score_embeddings`.

    Raises:
        ValueError: See `score_embeddings`.
    """
    if scores.ndim != 2 or scores.shape != relevant.shape or relevant.dtype != torch.bool:
        raise ValueError(
            "expected scores [Q, G] and a boolean mask of relevant items of the same shape, got "
            f"{list(scores.shape)} and {list(relevant.shape)} of {relevant.dtype}."
        )
    _check_sizes(*scores.shape)
    step = max(1, CHUNK_ELEMENTS // scores.shape[1])
    chunks = zip(scores.split(step), relevant.split(step), strict=True)
    return _score(chunks, measures, (definition,))[0]


def average_precision(hits: Tensor, relevant: Tensor, definition: Definition) -> Tensor:
    """Average precision of rankings.

    Args:
        hits: Whether the item of every rank is relevant, best rank first, ``[Q, K]``.
        relevant: Relevant items in the whole gallery, ``[Q]``, at least one each.
        definition: Formula.

    Returns:
        float64 ``[Q]``, 0..1.
    """
    found = hits.cumsum(1)
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    precision = found.double() / rank
    if definition.interpolated:
        precision = precision.flip(1).cummax(1).values.flip(1)
    total = (precision * hits).sum(1)
    if definition.normaliser == "found":
        return total / found[:, -1].clamp(min=1)
    return total / relevant.clamp(max=hits.shape[1])


def precision_at(hits: Tensor, relevant: Tensor, k: int, definition: Definition) -> Tensor:
    """Precision within the top k.

    Args:
        hits: See `average_precision`; ``[Q, min(k, gallery)]`` or deeper.
        relevant: See `average_precision`.
        k: Ranks to look at.
        definition: Formula.

    Returns:
        float64 ``[Q]``, 0..1.
    """
    found = hits[:, :k].cumsum(1).double()
    if definition.precision_depth == "min(k, relevant)":
        depth = relevant.clamp(max=found.shape[1])
        return found.gather(1, depth[:, None] - 1).squeeze(1) / depth
    return found[:, -1] / (k if definition.precision_depth == "k" else found.shape[1])


def _score(
    chunks: Iterator[tuple[Tensor, Tensor]],
    measures: Sequence[str],
    definitions: Sequence[str | Definition],
) -> tuple[RetrievalScores, ...]:
    """Measure chunks of scores and relevance, ``[q, G]`` each, by every definition."""
    formulas = [find_definition(definition) for definition in definitions]
    depths = {name: _parse(name) for name in measures}
    if not depths:
        raise ValueError("expected at least one measure, such as 'mAP@all', got none.")
    deepest = (
        None
        if any(k is None for _, k in depths.values())
        else max(k for _, k in depths.values() if k is not None)
    )
    values: list[dict[str, list[Tensor]]] = [{name: [] for name in depths} for _ in formulas]
    answerable: list[Tensor] = []
    for scores, relevant in chunks:
        if scores.isnan().any():
            raise ValueError("the scores hold NaN. Check the embeddings for NaN and infinity.")
        count = relevant.sum(1)
        kept = count > 0
        answerable.append(kept.cpu())
        # torch.topk would be cheaper but orders equal scores as it likes.
        order = scores[kept].argsort(dim=1, descending=True, stable=True)[:, :deepest]
        # Apple's mps has no float64.
        hits, count = relevant[kept].gather(1, order).cpu(), count[kept].cpu()
        for formula, own in zip(formulas, values, strict=True):
            for name, (kind, k) in depths.items():
                own[name].append(_measure(kind, k, hits, count, formula))
    mask = torch.cat(answerable)
    if not mask.any():
        raise ValueError(
            f"none of {len(mask)} queries has a relevant item in the gallery. Check that "
            "queries and gallery use the same labels."
        )
    return tuple(
        RetrievalScores(
            values={name: torch.cat(parts) for name, parts in own.items()},
            queries=mask.nonzero().squeeze(1),
            skipped=int((~mask).sum()),
        )
        for own in values
    )


def _measure(
    kind: str, k: int | None, hits: Tensor, relevant: Tensor, formula: Definition
) -> Tensor:
    if kind == "mAP":
        return average_precision(hits[:, :k], relevant, formula)
    if kind == "Acc":
        return hits[:, :k].any(1).double()
    assert k is not None
    return precision_at(hits, relevant, k, formula)


def _parse(measure: str) -> tuple[str, int | None]:
    """Kind and depth of a measure's name; None is the whole gallery."""
    match = re.fullmatch(r"(mAP)@all|(mAP|P|Acc)@([1-9]\d*)", measure)
    if match is None:
        raise ValueError(
            f"unknown measure {measure!r}; expected 'mAP@all', 'mAP@k', 'P@k' or 'Acc@k', k from 1."
        )
    return (match[1], None) if match[1] else (match[2], int(match[3]))


def _check_sizes(queries: int, gallery: int) -> None:
    if queries < 1 or gallery < 1:
        raise ValueError(f"expected queries and a gallery, got {queries} and {gallery} items.")
