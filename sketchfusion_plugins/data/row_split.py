"""A split of millions of labelled rows, such as Quick, Draw!'s, by a hash that they can afford."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sketchfusion_plugins.data.pictures import seed_of

GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def held_out_rows(
    seed: int, categories: Sequence[str], labels: NDArray[np.int64], share: float
) -> NDArray[np.bool_]:
    """Whether each row is held out, by the name of its class and its place among that class's rows.

    Args:
        seed: Another seed, another split.
        categories: Names in the order of the labels.
        labels: ``[N]``.
        share: Chance of a row to be held out, 0..1.

    Returns:
        Boolean ``[N]``.
    """
    counts = np.bincount(labels, minlength=len(categories)).tolist()
    named = zip(categories, counts, strict=True)
    held_out = np.empty(len(labels), dtype=bool)
    held_out[np.argsort(labels, kind="stable")] = np.concatenate(
        [_shares(seed_of(seed, name), count) < share for name, count in named]
    )
    return held_out


def places(chosen: NDArray[np.bool_]) -> array[int]:
    """Where it is true, in 8 bytes each; a list of as many integers takes five times as much."""
    return array("q", np.flatnonzero(chosen).astype(np.int64).tobytes())


def present(categories: Sequence[str], labels: NDArray[np.int64]) -> set[str]:
    """Categories that some of the labels ``[N]`` stand for."""
    counts = np.bincount(labels, minlength=len(categories)).tolist()
    return {name for name, count in zip(categories, counts, strict=True) if count}


def _shares(seed: int, count: int) -> NDArray[np.float64]:
    """The first ``count`` numbers of SplitMix64, in 0..1.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    mixed = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    shares: NDArray[np.float64] = (mixed ^ mixed >> np.uint64(31)) / 2.0**64
    return shares
