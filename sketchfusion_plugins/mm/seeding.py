"""Chance that depends on a draw's number alone: resumed training equals undisturbed training.

mmengine advances its sampler when it resumes, and knows nothing of random numbers that augmentation
and losses have taken meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from torch.utils.data import Dataset

Draw = tuple[int, int]


class NumberedSampler(InfiniteSampler):  # type: ignore[misc]
    """mmengine's endless sampler, which numbers what a process draws."""

    def _indices_of_rank(self) -> Iterator[Draw]:
        yield from zip(super()._indices_of_rank(), count(), strict=False)


class SeededDraws(Dataset[dict[str, Any]]):
    """Items that a `NumberedSampler` draws, each with random numbers of its own.

    Args:
        data: Where items come from.
        seed: Seed of the run.
        rank: Process that draws.
    """

    def __init__(self, data: Dataset[dict[str, Any]], seed: int, rank: int) -> None:
        self.data, self.seed, self.rank = data, seed, rank

    def __len__(self) -> int:
        length: int = len(self.data)  # type: ignore[arg-type]
        return length

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        index, number = draw
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, self.rank, number))
            return self.data[index]


class SeedIterationHook(Hook):  # type: ignore[misc]
    """Seeds torch before every iteration, for losses and dropout.

    Args:
        seed: Seed of the run.
    """

    priority = "VERY_HIGH"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed by the iteration's number."""
        torch.manual_seed(mixed_seed(self.seed, runner.rank, runner.iter))


def mixed_seed(*numbers: int) -> int:
    """One seed from several numbers, none of them negative."""
    (state,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return int(state >> np.uint64(1))
