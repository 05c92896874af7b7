"""How far a measured mean may be from the true one: bootstrap and Wilson intervals."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# Random indices held at a time.
CHUNK_ELEMENTS = 2**22


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


def bootstrap_mean(
    values: npt.ArrayLike,
    groups: npt.ArrayLike | Sequence[Any] | None = None,
    weights: npt.ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean (Efron and Tibshirani 1993, chapter 13).

    Items of one group, such as drawings of the same concept, are not independent: with ``groups``
    whole groups are drawn (cluster bootstrap), which usually widens the interval. With ``weights``
    the mean is that of what was drawn by its own weights, so that it stays among the values.

    Args:
        values: One value per item, such as a query's average precision, ``[N]``.
        groups: Group of every item, ``[N]``; None makes every item its own.
        weights: Weight of every item, ``[N]``; None weighs all alike.
        level: Probability that the interval covers the mean, 0..1.
        resamples: Number of resamples.
        seed: Seed; the same one gives the same interval.

    Raises:
        ValueError: Not ``[N]``, NaN, fewer than two items or groups, weights that are not above
            0, or options out of range.
    """
    _check_level(level)
    if resamples < 1:
        raise ValueError(f"expected at least one resample, got {resamples}.")
    items = np.asarray(values, dtype=np.float64)
    if items.ndim != 1 or not np.isfinite(items).all():
        raise ValueError(
            f"expected finite values [N], got the shape {list(items.shape)}"
            f"{'' if items.ndim != 1 else ' with NaN or infinity'}."
        )
    sizes = np.ones(len(items)) if weights is None else check_weights(weights, len(items))
    sums = items * sizes
    if groups is not None:
        names = np.asarray(groups)
        if names.shape != items.shape:
            raise ValueError(f"expected groups [{len(items)}], got {list(names.shape)}.")
        _, member = np.unique(names, return_inverse=True)
        sums = np.bincount(member, weights=sums).astype(np.float64)
        sizes = np.bincount(member, weights=sizes).astype(np.float64)
    count = len(sums)
    if count < 2:
        raise ValueError(
            f"an interval needs at least two independent items or groups, got {count}."
        )
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK_ELEMENTS // count)
    means = []
    for start in range(0, resamples, step):
        drawn = generator.integers(count, size=(min(step, resamples - start), count))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def wilson(share: float, count: int, level: float = 0.95) -> Interval:
    """Interval of a share of independent items (Wilson 1927).

    Args:
        share: Measured share, 0..1.
        count: Items it was measured on.
        level: Probability that the interval covers the share, 0..1.

    Raises:
        ValueError: Arguments out of range.
    """
    _check_level(level)
    if not 0 <= share <= 1 or count < 1:
        raise ValueError(
            f"expected a share of 0 to 1 of at least one item, got {share} of {count}."
        )
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * (share * (1 - share) / count + z * z / (4 * count**2)) ** 0.5 / (1 + z * z / count)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def check_weights(weights: npt.ArrayLike, count: int) -> npt.NDArray[np.float64]:
    """Weights of items as float64 ``[N]``.

    Raises:
        ValueError: Not one finite weight above 0 for each of ``count`` items.
    """
    checked = np.asarray(weights, dtype=np.float64)
    wrong = checked[~((checked > 0) & np.isfinite(checked))]
    if checked.shape != (count,) or len(wrong):
        got = wrong[0] if checked.shape == (count,) else f"the shape {list(checked.shape)}"
        raise ValueError(f"expected finite weights above 0 [{count}], got {got}.")
    return checked


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, such as 0.95, got {level}.")
