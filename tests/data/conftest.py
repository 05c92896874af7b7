"""Pictures on disk, and data sets as worker processes see them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset


@pytest.fixture(scope="session")
def draw_picture() -> Callable[..., Path]:
    """Writes a picture of one colour, its folders included."""

    def draw(
        path: Path, colour: Any = (200, 30, 60), size: tuple[int, int] = (20, 14), mode: str = "RGB"
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, colour).save(path)
        return path

    return draw


@pytest.fixture(scope="session")
def same_in_workers() -> Callable[..., list[Any]]:
    """Asserts that two worker processes deliver what this process does; returns the batches."""

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, np.ndarray):
            return bool(np.array_equal(a, b))
        return bool(a == b)

    def check(data: Dataset[dict[str, Any]], batch_size: int = 2) -> list[Any]:
        here = list(DataLoader(data, batch_size))
        there = list(DataLoader(data, batch_size, num_workers=2))
        assert len(here) == len(there) > 0
        for a, b in zip(here, there, strict=True):
            assert a.keys() == b.keys()
            assert all(equal(a[name], b[name]) for name in a)
        return here

    return check
