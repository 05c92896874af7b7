"""Retrieval measures against hand calculation, other libraries and published formulas."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sketchfusion_plugins.metrics import retrieval
from sketchfusion_plugins.metrics.retrieval import (
    MEASURES,
    RetrievalScores,
    group_weights,
    score_by_definitions,
    score_embeddings,
    score_rankings,
)
from sketchfusion_plugins.metrics.retrieval_definitions import DEFINITIONS, Definition

# One query, ten items in ranked order; relevant are ranks 1, 3, 6 and 10.
RANKS = torch.tensor([[1, 0, 1, 0, 0, 1, 0, 0, 0, 1]], dtype=torch.bool)
SCORES = torch.linspace(0.9, 0.1, 10)[None]


def measure(
    name: str, scores: Tensor = SCORES, relevant: Tensor = RANKS, definition: Any = "standard"
) -> float:
    return score_rankings(scores, relevant, [name], definition).mean(name)


@pytest.mark.parametrize(
    ("definition", "name", "expected"),
    [
        ("standard", "mAP@all", (1 + 2 / 3 + 3 / 6 + 4 / 10) / 4),
        ("standard", "mAP@3", (1 + 2 / 3) / 3),
        ("standard", "mAP@5", (1 + 2 / 3) / 4),
        ("standard", "mAP@50", (1 + 2 / 3 + 3 / 6 + 4 / 10) / 4),
        ("torchmetrics", "mAP@all", (1 + 2 / 3 + 3 / 6 + 4 / 10) / 4),
        ("torchmetrics", "mAP@3", (1 + 2 / 3) / 2),
        ("torchmetrics", "mAP@1", 1.0),
        ("standard", "P@1", 1.0),
        ("standard", "P@5", 2 / 5),
        ("standard", "P@10", 4 / 10),
        ("standard", "P@40", 4 / 10),
        ("torchmetrics", "P@40", 4 / 40),
        ("sake", "P@40", 4 / 10),
        ("zse-sbir", "P@3", 2 / 3),
        ("zse-sbir", "P@10", 2 / 4),
        ("zse-sbir", "P@40", 2 / 4),
        ("standard", "Acc@1", 1.0),
    ],
)
def test_measures_by_hand(definition: str, name: str, expected: float) -> None:
    assert measure(name, definition=definition) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("definition", ["sake", "zse-sbir"])
def test_interpolated_precision_is_the_best_at_a_later_rank(definition: str) -> None:
    # Ranks 2, 3 and 6: precisions 1/2, 2/3 and 3/6; the first is lifted to 2/3.
    relevant = torch.tensor([[0, 1, 1, 0, 0, 1]], dtype=torch.bool)
    scores = torch.arange(6, 0, -1.0)[None]
    expected = (2 / 3 + 2 / 3 + 1 / 2) / 3
    assert measure("mAP@all", scores, relevant, definition) == pytest.approx(expected, abs=1e-12)
    # Within the top 2 the later, better precision is not seen.
    assert measure("mAP@2", scores, relevant, definition) == pytest.approx(1 / 2 / 2, abs=1e-12)
    assert measure("mAP@all", scores, relevant) == pytest.approx((1 / 2 + 2 / 3 + 1 / 2) / 3)


def test_accuracy_at_k_of_instances() -> None:
    gallery = torch.eye(12)
    queries = (
        gallery[[3, 5, 7]]
        + 0.9 * gallery[[3, 6, 8]]
        + torch.tensor([[0.0], [1], [0]]) * (2 * gallery[6])
    )
    result = score_embeddings(
        queries, gallery, torch.tensor([3, 5, 7]), torch.arange(12), MEASURES["fine_grained"]
    )
    assert result.values["Acc@1"].tolist() == [1, 0, 1]
    assert result.values["Acc@5"].tolist() == [1, 1, 1]
    assert result.mean("Acc@1") == pytest.approx(2 / 3)


def test_equal_scores_keep_the_order_of_the_gallery() -> None:
    relevant = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
    result = score_rankings(torch.zeros(2, 4), relevant, ["mAP@all", "Acc@2"])
    assert result.values["mAP@all"].tolist() == [1 / 2, 1 / 4]
    assert result.values["Acc@2"].tolist() == [1, 0]


def test_ties_differ_from_scikit_learn() -> None:
    # scikit-learn's precision-recall curve has one point for all equal scores.
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    relevant = torch.tensor([[1, 0, 0, 0]], dtype=torch.bool)
    assert sklearn_metrics.average_precision_score(relevant[0], np.zeros(4)) == 0.25
    assert measure("mAP@all", torch.zeros(1, 4), relevant) == 1.0


def test_queries_without_a_relevant_item_are_left_out_and_counted() -> None:
    relevant = torch.cat([RANKS, torch.zeros(2, 10, dtype=torch.bool), RANKS.flip(1)])
    result = score_rankings(SCORES.expand(4, -1), relevant, ["mAP@all", "P@5", "Acc@1"])
    assert result.skipped == 2
    assert result.queries.tolist() == [0, 3]
    assert all(len(values) == 2 for values in result.values.values())
    assert result.mean("Acc@1") == 1.0
    with pytest.raises(ValueError, match="none of 2 queries has a relevant item"):
        score_rankings(SCORES.expand(2, -1), relevant[1:3])


def test_mean_over_classes_weights_them_alike() -> None:
    relevant = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1], [0, 0]], dtype=torch.bool)
    result = score_rankings(torch.tensor([[2.0, 1.0]]).expand(5, 2), relevant, ["mAP@all"])
    assert result.mean("mAP@all") == pytest.approx(3.5 / 4)
    groups = torch.tensor([7, 7, 7, 9, 11])
    assert result.mean("mAP@all", groups) == pytest.approx((1 + 0.5) / 2)
    weights = group_weights(groups[:4])
    assert weights.dtype == torch.float64 and weights.tolist() == [1 / 3, 1 / 3, 1 / 3, 1]
    # Perfect is 1 and no more, however the classes' sizes round.
    sizes = torch.tensor([1, 3, 7, 11, 49])
    perfect = RetrievalScores({"P@1": torch.ones(71, dtype=torch.float64)}, torch.arange(71), 0)
    assert perfect.mean("P@1", torch.arange(5).repeat_interleave(sizes)) == 1


def random_case(seed: int, queries: int = 13, gallery: int = 61) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(queries, gallery, generator=generator, dtype=torch.float64) + 0.01
    return scores, torch.rand(queries, gallery, generator=generator) < 0.3


@pytest.mark.parametrize("seed", range(3))
def test_scikit_learn_agrees_where_nothing_is_tied(seed: int) -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    scores, relevant = random_case(seed)
    result = score_rankings(scores, relevant)
    expected = [
        sklearn_metrics.average_precision_score(relevant[row], scores[row])
        for row in result.queries.tolist()
    ]
    torch.testing.assert_close(
        result.values["mAP@all"], torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize("k", [1, 7, 60, 61])
@pytest.mark.parametrize("seed", range(2))
def test_torchmetrics_agrees_with_the_definition_of_its_name(seed: int, k: int) -> None:
    functional = pytest.importorskip("torchmetrics.functional.retrieval")
    scores, relevant = random_case(seed)
    names = [f"mAP@{k}", f"P@{k}", f"Acc@{k}"]
    result = score_rankings(scores, relevant, names, "torchmetrics")
    calls = (
        functional.retrieval_average_precision,
        functional.retrieval_precision,
        functional.retrieval_hit_rate,
    )
    for name, call in zip(names, calls, strict=True):
        expected = [float(call(scores[row], relevant[row], top_k=k)) for row in result.queries]
        assert result.values[name].tolist() == pytest.approx(expected, abs=1e-6)


def test_torchmetrics_precision_of_a_small_gallery() -> None:
    functional = pytest.importorskip("torchmetrics.functional.retrieval")
    scores, relevant = random_case(0)
    expected = [
        float(functional.retrieval_precision(*pair, top_k=200))
        for pair in zip(scores, relevant, strict=True)
    ]
    result = score_rankings(scores, relevant, ["P@200"], "torchmetrics")
    assert result.values["P@200"].tolist() == pytest.approx(expected, abs=1e-6)


def test_torchmetrics_drops_items_of_negative_score() -> None:
    functional = pytest.importorskip("torchmetrics.functional.retrieval")
    theirs = functional.retrieval_average_precision(SCORES[0] - 0.85, RANKS[0])
    assert float(theirs) == 1.0  # only rank 1 is above 0: the other three count as irrelevant
    ours = measure("mAP@all", SCORES - 0.85, definition="torchmetrics")
    assert ours == measure("mAP@all", definition="torchmetrics")
    assert ours < 0.65


def loop(ranked: list[bool], k: int | None, definition: Definition) -> tuple[float, float]:
    """AP@k and P@k of one ranking, as plainly as they can be written."""
    top = ranked if k is None else ranked[:k]
    precisions = [sum(top[: rank + 1]) / (rank + 1) for rank in range(len(top))]
    if definition.interpolated:
        precisions = [max(precisions[rank:]) for rank in range(len(top))]
    total = sum(precision for precision, hit in zip(precisions, top, strict=True) if hit)
    divisor = sum(top) if definition.normaliser == "found" else min(len(top), sum(ranked))
    depth = {
        "k": k or len(ranked),
        "min(k, gallery)": len(top),
        "min(k, relevant)": min(len(top), sum(ranked)),
    }[definition.precision_depth]
    return total / max(1, divisor), sum(ranked[:depth]) / depth


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rankings=st.integers(1, 30).flatmap(
        lambda width: st.lists(
            st.lists(st.booleans(), min_size=width, max_size=width).filter(any),
            min_size=1,
            max_size=5,
        )
    ),
    k=st.integers(1, 40),
    name=st.sampled_from(sorted(DEFINITIONS)),
    seed=st.integers(0, 99),
)
def test_any_ranking_equals_the_plain_loop(
    rankings: list[list[bool]], k: int, name: str, seed: int
) -> None:
    ranked = torch.tensor(rankings)
    order = torch.randperm(ranked.shape[1], generator=torch.Generator().manual_seed(seed))
    scores = -torch.arange(ranked.shape[1], dtype=torch.float32).expand_as(ranked)
    names = [f"mAP@{k}", f"P@{k}", "mAP@all"]
    result = score_rankings(scores[:, order], ranked[:, order], names, name)
    for row, ranking in enumerate(rankings):
        ap, precision = loop(ranking, k, DEFINITIONS[name])
        assert float(result.values[names[0]][row]) == pytest.approx(ap, abs=1e-12)
        assert float(result.values[names[1]][row]) == pytest.approx(precision, abs=1e-12)
        whole, _ = loop(ranking, None, DEFINITIONS[name])
        assert float(result.values["mAP@all"][row]) == pytest.approx(whole, abs=1e-12)
        assert all(0 <= float(result.values[n][row]) <= 1 for n in names)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ranking=st.lists(st.booleans(), min_size=1, max_size=40).filter(any), k=st.integers(1, 50))
def test_interpolation_and_found_never_lower_the_figure(ranking: list[bool], k: int) -> None:
    relevant = torch.tensor([ranking])
    scores = -torch.arange(len(ranking), dtype=torch.float32)[None]
    standard = measure(f"mAP@{k}", scores, relevant)
    for name in ("sake", "torchmetrics"):
        assert measure(f"mAP@{k}", scores, relevant, name) >= standard - 1e-12


@pytest.mark.parametrize("elements", [1, 40, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_are_scored_alike_in_any_chunks(
    elements: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    queries = (torch.randn(23, 8, generator=generator) * 9).to(dtype)
    gallery = torch.randn(37, 8, generator=generator).to(dtype)
    query_labels = torch.randint(5, (23,), generator=generator)
    gallery_labels = torch.randint(4, (37,), generator=generator)
    names = ["mAP@all", "mAP@10", "P@10", "Acc@5"]
    cosine = torch.nn.functional.cosine_similarity(
        queries[:, None].double(), gallery[None].double(), dim=2
    )
    expected = score_rankings(cosine, query_labels[:, None] == gallery_labels, names)
    monkeypatch.setattr(retrieval, "CHUNK_ELEMENTS", elements)
    result = score_embeddings(queries, gallery, query_labels, gallery_labels, names)
    assert result.skipped == expected.skipped == int((query_labels == 4).sum()) > 0
    for name in names:
        torch.testing.assert_close(result.values[name], expected.values[name])


def test_one_ranking_serves_several_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    queries, gallery = (torch.randn(n, 8, generator=generator) for n in (9, 30))
    labels = (torch.arange(9) % 3, torch.arange(30) % 3)
    names = ["mAP@10", "P@20"]
    cosine = torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(gallery).T
    expected = [
        score_rankings(cosine, labels[0][:, None] == labels[1], names, definition)
        for definition in ("standard", "zse-sbir")
    ]
    sorts: list[int] = []
    sort = torch.Tensor.argsort
    monkeypatch.setattr(torch.Tensor, "argsort", lambda *a, **k: sorts.append(1) or sort(*a, **k))
    found = score_by_definitions(queries, gallery, *labels, names, ("standard", "zse-sbir"), "cpu")
    assert len(sorts) == 1
    for own, alone in zip(found, expected, strict=True):
        for name in names:
            torch.testing.assert_close(own.values[name], alone.values[name])
    assert not torch.equal(found[0].values["P@20"], found[1].values["P@20"])


def test_no_more_scores_are_held_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "CHUNK_ELEMENTS", 100)
    seen: list[int] = []
    sort = torch.Tensor.argsort

    def watched(scores: Tensor, *arguments: Any, **options: Any) -> Tensor:
        seen.append(scores.numel())
        return sort(scores, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "argsort", watched)
    labels = torch.zeros(33, dtype=torch.long)
    score_embeddings(torch.rand(33, 4), torch.rand(33, 4), labels, labels)
    assert len(seen) == 11
    assert max(seen) == 99


def test_protocols_name_measures_that_exist() -> None:
    for measures in MEASURES.values():
        result = score_rankings(SCORES, RANKS, measures)
        assert set(result.values) == set(measures)
    assert MEASURES["sketchy_21"] == ("mAP@200", "P@200")
    assert MEASURES["tuberlin_30"] == ("mAP@all", "P@100")
    assert MEASURES["quickdraw_30"] == ("mAP@all", "P@200")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measures": ["mAP"]}, "unknown measure 'mAP'"),
        ({"measures": ["P@all"]}, "unknown measure 'P@all'"),
        ({"measures": ["P@0"]}, "unknown measure 'P@0'"),
        ({"measures": []}, "at least one measure"),
        ({"definition": "voc"}, "unknown definition 'voc'; known: standard, sake"),
        ({"scores": torch.full((1, 10), torch.nan)}, "NaN"),
        ({"scores": torch.zeros(1, 9)}, r"\[1, 9\] and \[1, 10\]"),
        ({"relevant": RANKS.int()}, "boolean mask"),
        ({"scores": torch.zeros(1, 0), "relevant": RANKS[:, :0]}, "got 1 and 0 items"),
    ],
)
def test_bad_rankings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_rankings(**{"scores": SCORES, "relevant": RANKS, **changes})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 4), (3, 5), 2, 3), r"\[2, 4\] and \[3, 5\]"),
        (((2, 4), (3, 4), 3, 3), r"query_labels \[2\], got \[3\]"),
        (((2, 4), (3, 4), 2, 2), r"gallery_labels \[3\], got \[2\]"),
        (((2, 4), (0, 4), 2, 0), "got 2 and 0 items"),
    ],
)
def test_bad_embeddings(shapes: Any, message: str) -> None:
    queries, gallery, rows, items = shapes
    with pytest.raises(ValueError, match=message):
        score_embeddings(
            torch.rand(queries), torch.rand(gallery), torch.zeros(rows), torch.zeros(items)
        )


def test_bad_definitions() -> None:
    with pytest.raises(ValueError, match="normaliser"):
        Definition(normaliser="k")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision_depth"):
        Definition(precision_depth="all")  # type: ignore[arg-type]


def test_nothing_is_said_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = torch.zeros(3)
        score_embeddings(torch.rand(3, 2), torch.rand(3, 2), labels, labels)
    assert capsys.readouterr() == ("", "")
