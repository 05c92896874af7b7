"""Batches of several processes as one, for losses that compare a batch's items with each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def of_all_processes(rows: Tensor) -> Tensor:
    """Rows ``[N, ...]`` of all W processes, ``[W * N, ...]`` in the order of their ranks.

    Under data parallelism, which takes the mean of the processes' gradients, a loss of these rows
    trains as one process with the whole batch would (CLIP, Radford et al. 2021, gathers so). Every
    process must have as many rows, and compute the same loss of them. Without processes that are
    connected the rows are returned as they are.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        # All processes have the same loss, so that the sum of their gradients is known to each.
        count = distributed.get_world_size()
        return gradients[0].chunk(count)[distributed.get_rank()] * count
