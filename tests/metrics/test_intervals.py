"""Intervals against textbooks, scipy and simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sketchfusion_plugins.metrics import intervals
from sketchfusion_plugins.metrics.intervals import Interval, bootstrap_mean, wilson


def test_wilson_interval_of_the_textbook() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    low, high = wilson(81 / 263, 263)
    assert low == pytest.approx(0.2553, abs=5e-5)
    assert high == pytest.approx(0.3662, abs=5e-5)
    assert wilson(0.0, 20)[0] == pytest.approx(0.0, abs=1e-12)
    assert wilson(1.0, 20)[1] == pytest.approx(1.0)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_equals_scipy(level: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(7, 31).proportion_ci(level, method="wilson")
    assert wilson(7 / 31, 31, level) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bootstrap_agrees_with_scipy(level: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).beta(2, 5, size=83)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, confidence_level=level, method="percentile", rng=2
    ).confidence_interval
    assert bootstrap_mean(values, level=level) == pytest.approx(
        (expected.low, expected.high), abs=2e-3
    )


def test_two_values_give_the_binomial_quantiles() -> None:
    # Means are 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4.
    assert bootstrap_mean([0.0, 1.0], level=0.6) == Interval(0.0, 1.0)
    assert bootstrap_mean([0.0, 1.0], level=0.4) == Interval(0.5, 0.5)


def test_seed_decides_and_chunks_do_not_lose_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=40)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
    whole = bootstrap_mean(values, resamples=999)
    monkeypatch.setattr(intervals, "CHUNK_ELEMENTS", 1)
    # numpy draws the same numbers in one call or many.
    assert bootstrap_mean(values, resamples=999) == whole


def test_groups_of_equal_values_count_once_each() -> None:
    names = np.repeat(["cat", "dog", "owl", "fox"], 25)
    values = np.repeat([0.0, 0.2, 0.7, 1.0], 25)
    clustered = bootstrap_mean(values, names)
    assert clustered == pytest.approx(bootstrap_mean([0.0, 0.2, 0.7, 1.0]), abs=1e-12)
    single = bootstrap_mean(values)
    assert clustered.high - clustered.low > 3 * (single.high - single.low)


def test_groups_weigh_by_their_size() -> None:
    # Resampled means are 0, 1 or the size-weighted 3/4.
    interval = bootstrap_mean([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"], level=0.4)
    assert interval == Interval(0.75, 0.75)


def test_weights_give_the_ratio_of_what_was_drawn() -> None:
    # Resampled means are 0, 1 or the weighted 3/4, whatever the weights' sum.
    for scale in (1.0, 1 / 7):
        interval = bootstrap_mean([1.0, 0.0], weights=[3 * scale, scale], level=0.4)
        assert interval == pytest.approx((0.75, 0.75), abs=1e-12)
    # The mean of equal values does not depend on what was drawn.
    weights = np.random.default_rng(0).random(30) + 0.01
    assert bootstrap_mean(np.ones(30), weights=weights) == Interval(1.0, 1.0)
    values = np.random.default_rng(1).random(30)
    assert bootstrap_mean(values, weights=np.ones(30)) == bootstrap_mean(values)


def test_weighted_bootstrap_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(1)
    values, weights = generator.beta(2, 5, size=83), 1 / generator.integers(1, 30, size=83)

    def ratio(value: Any, weight: Any, axis: int) -> Any:
        return (value * weight).sum(axis) / weight.sum(axis)

    expected = stats.bootstrap(
        (values, weights), ratio, paired=True, n_resamples=10_000, method="percentile", rng=2
    ).confidence_interval
    assert bootstrap_mean(values, weights=weights) == pytest.approx(
        (expected.low, expected.high), abs=5e-3
    )


def test_groups_keep_their_items_weights() -> None:
    values, weights = [1.0, 0.5, 0.0], [1.0, 2.0, 1.0]
    # Whole groups have the means 2/3 and 0, and weigh 3 and 1.
    interval = bootstrap_mean(values, ["a", "a", "b"], weights=weights, level=0.4)
    assert interval == pytest.approx((0.5, 0.5))
    every = bootstrap_mean(values, ["a", "a", "b"], weights=weights, level=0.6)
    assert every == pytest.approx((0, 2 / 3))


def test_coverage_is_near_its_level() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for seed in range(300):
        interval = bootstrap_mean(generator.random(60), resamples=400, seed=seed)
        covered += interval.low <= 0.5 <= interval.high
    assert 0.90 <= covered / 300 <= 0.98


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": [[1.0]]}, r"values \[N\], got the shape \[1, 1\]"),
        ({"values": [1.0, np.nan]}, "NaN or infinity"),
        ({"values": [1.0]}, "at least two"),
        ({"values": []}, "at least two"),
        ({"values": [1.0, 2.0], "groups": ["a", "a"]}, "at least two .* got 1"),
        ({"values": [1.0, 2.0], "groups": ["a"]}, r"groups \[2\], got \[1\]"),
        ({"values": [1.0, 2.0], "weights": [1.0]}, r"weights above 0 \[2\], got .* \[1\]"),
        ({"values": [1.0, 2.0], "weights": [1.0, 0.0]}, r"weights above 0 \[2\], got 0\.0"),
        ({"values": [1.0, 2.0], "weights": [np.inf, 1.0]}, r"weights above 0 \[2\], got inf"),
        ({"values": [1.0, 2.0], "level": 95}, "level between 0 and 1"),
        ({"values": [1.0, 2.0], "resamples": 0}, "at least one resample"),
    ],
)
def test_bad_bootstrap(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(**arguments)


@pytest.mark.parametrize(
    "arguments", [(1.2, 5), (-0.1, 5), (0.5, 0), (0.5, 5, 1.0), (float("nan"), 5)]
)
def test_bad_wilson(arguments: Any) -> None:
    with pytest.raises(ValueError, match="expected a"):
        wilson(*arguments)
