"""Query segmentation metrics, by hand and against scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score

from sketchfusion_plugins.metrics.query_segmentation import fit_threshold, query_segmentation_scores


def test_by_hand() -> None:
    predicted = torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 1]]]).bool()
    masks = torch.tensor([[[1, 0, 0, 1], [1, 1, 255, 255]]])
    scores = query_segmentation_scores(predicted, masks)
    counts = (
        scores.true_positive,
        scores.false_positive,
        scores.false_negative,
        scores.true_negative,
    )
    assert [count.tolist() for count in counts] == [[2], [1], [2], [1]]
    assert scores.foreground_iou.tolist() == [2 / 5]
    assert scores.background_iou.tolist() == [1 / 4]
    assert scores.mean_iou.tolist() == [(2 / 5 + 1 / 4) / 2]
    assert scores.pixel_accuracy.tolist() == [3 / 6]
    assert scores.excluded == 0


@pytest.mark.parametrize("ignore_index", [255, -1])
def test_agrees_with_scikit_learn(ignore_index: int) -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.rand(6, 13, 9, generator=generator) > 0.6
    masks = torch.randint(2, (6, 13, 9), generator=generator)
    masks[torch.rand(6, 13, 9, generator=generator) > 0.7] = ignore_index
    scores = query_segmentation_scores(predicted, masks, ignore_index)
    for query in range(6):
        kept = masks[query] != ignore_index
        true, found = masks[query][kept].numpy(), predicted[query][kept].int().numpy()
        expected = {
            "foreground_iou": jaccard_score(true, found),
            "background_iou": jaccard_score(true, found, pos_label=0),
            "mean_iou": jaccard_score(true, found, average="macro"),
            "pixel_accuracy": accuracy_score(true, found),
        }
        for name, value in expected.items():
            assert 0 < value < 1
            assert getattr(scores, name)[query].item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("predicted", "mask", "foreground", "background", "accuracy"),
    [
        (0, 0, 1, 1, 1),  # Nothing to find, and nothing found.
        (1, 1, 1, 1, 1),  # All is foreground: there is no background to miss.
        (1, 0, 0, 0, 0),
        (0, 1, 0, 0, 0),
    ],
)
def test_masks_of_one_class(
    predicted: int, mask: int, foreground: float, background: float, accuracy: float
) -> None:
    scores = query_segmentation_scores(
        torch.full((1, 3, 5), bool(predicted)), torch.full((1, 3, 5), mask)
    )
    assert scores.foreground_iou.tolist() == [foreground]
    assert scores.background_iou.tolist() == [background]
    assert scores.pixel_accuracy.tolist() == [accuracy]


def test_queries_without_a_label_are_excluded_and_counted() -> None:
    masks = torch.ones(3, 2, 2, dtype=torch.long)
    masks[1] = 255
    scores = query_segmentation_scores(torch.ones(3, 2, 2, dtype=torch.bool), masks)
    assert scores.excluded == 1
    for name in ("foreground_iou", "background_iou", "mean_iou", "pixel_accuracy"):
        assert getattr(scores, name).tolist() == [1, 1]


def test_photos_of_different_sizes_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for size in ((4, 7), (9, 5)):
        predicted = torch.rand(1, *size, generator=generator) > 0.5
        masks = torch.randint(2, (1, *size), generator=generator)
        parts.append(query_segmentation_scores(predicted, masks))
    total = parts[0] + parts[1]
    summary = total.summary()
    assert set(summary) == {"foreground_iou", "mean_iou", "pixel_accuracy"}
    for name, value in summary.items():
        # Every query counts alike, however large its photo is.
        values = [getattr(part, name).item() for part in parts]
        assert getattr(total, name).tolist() == values
        assert value == pytest.approx(sum(values) / 2)


def test_no_query_at_all() -> None:
    scores = query_segmentation_scores(torch.zeros(0, 2, 2, dtype=torch.bool), torch.zeros(0, 2, 2))
    assert all(math.isnan(value) for value in scores.summary().values())


def test_wrong_input() -> None:
    masks = torch.zeros(1, 3, 5, dtype=torch.long)
    with pytest.raises(TypeError, match=r"as bool, got torch\.float32. Take logits > 0"):
        query_segmentation_scores(torch.zeros(1, 3, 5), masks)
    with pytest.raises(ValueError, match=r"\[B, H, W\], got \[1, 3, 4\] and \[1, 3, 5\]"):
        query_segmentation_scores(torch.zeros(1, 3, 4, dtype=torch.bool), masks)
    with pytest.raises(ValueError, match=r"labels 0, 1 and 255, got 2"):
        query_segmentation_scores(masks.bool(), masks + 2)


def mean_iou_of(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], threshold: float) -> float:
    """What a threshold is chosen by, counted one at a time."""
    scores = [query_segmentation_scores(values > threshold, mask) for values, mask in pairs]
    return float(torch.cat([score.foreground_iou for score in scores]).mean())


def test_threshold_has_the_best_mean_iou_of_labelled_pixels() -> None:
    similarity = torch.linspace(-1, 1, 101).reshape(1, 1, 101)
    mask = (similarity > 0.4).long()
    threshold = fit_threshold([(similarity, mask)])
    assert abs(threshold - 0.4) < 2 / 65
    # What is not labelled has no say.
    ignored = torch.where(similarity < 0.7, 255, (similarity > 0.8).long())
    assert 0.75 < fit_threshold([(similarity, ignored)]) < 0.83
    # Two pictures disagree: the larger gain wins.
    both = [(similarity, mask), (similarity, (similarity > -0.4).long())]
    best = max(mean_iou_of(both, float(value)) for value in similarity.flatten())
    assert mean_iou_of(both, fit_threshold(both)) == pytest.approx(best)


@pytest.mark.parametrize("share", [0.0005, 0.0088, 0.3, 0.999])
def test_an_object_is_found_however_little_of_a_photo_it_is(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(8, 128, 128, generator=generator) < share).long()
    similarity = 0.1 * torch.rand(8, 128, 128, generator=generator) + 0.2 * masks
    # Half of every picture is ignored, and looks like what is asked for.
    similarity[:, :64], masks[:, :64] = 0.9, 255
    pairs = [(similarity[:5], masks[:5]), (similarity[5:], masks[5:])]
    assert mean_iou_of(pairs, fit_threshold(pairs)) == 1


def test_what_overlaps_is_parted_nearly_as_well_as_by_any_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(6, 40, 40, generator=generator) < 0.05).long()
    similarity = torch.randn(6, 40, 40, generator=generator) + 2.5 * masks
    masks[torch.rand(6, 40, 40, generator=generator) < 0.1] = 255
    masks[5] = 255
    pairs = [(similarity, masks)]
    best = max(mean_iou_of(pairs, float(value)) for value in similarity.flatten()[::7])
    assert mean_iou_of(pairs, fit_threshold(pairs)) > best - 0.01


def test_a_threshold_that_is_given_wins_where_it_is_better() -> None:
    mask = torch.ones(1, 2, 3, dtype=torch.long)
    similarity = torch.linspace(0.2, 0.7, 6).reshape(1, 2, 3)
    pairs = [(similarity, mask)]
    # All is foreground, which no threshold among the similarities finds.
    assert mean_iou_of(pairs, fit_threshold(pairs)) < 1
    assert fit_threshold(pairs, also=[0.1]) == 0.1
    assert fit_threshold([(similarity, (similarity > 0.45).long())], also=[0.1]) > 0.4


def test_threshold_of_wrong_masks_is_refused() -> None:
    similarity, masks = torch.rand(1, 3, 5), torch.zeros(1, 3, 5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"similarities and masks \[B, H, W\], got \[1, 3, 4\]"):
        fit_threshold([(similarity[..., :4], masks)])
    with pytest.raises(ValueError, match=r"labels 0, 1 and 255, got 2"):
        fit_threshold([(similarity, masks), (similarity, masks + 2)])
    with pytest.raises(ValueError, match=r"no pixel is labelled 0 or 1"):
        fit_threshold([(similarity, masks + 255)])


def test_threshold_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair, got none"):
        fit_threshold([])
