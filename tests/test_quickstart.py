"""Parts of the quickstart that can be checked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sketchfusion_plugins.data.openmoji import Concept
from sketchfusion_plugins.quickstart import CLASSES, normalise, split_concepts


def concepts() -> list[Concept]:
    return [
        Concept(f"{name}-{index}", f"{name} {index}", "group", name, Path("none.svg"))
        for name in CLASSES
        for index in range(10)
    ]


def test_no_concept_is_in_both_parts() -> None:
    train, test = split_concepts(concepts(), seed=3)
    assert not {c.hexcode for c in train} & {c.hexcode for c in test}
    assert len(train) + len(test) == len(concepts())


def test_split_is_stratified_and_follows_the_seed() -> None:
    _, test = split_concepts(concepts(), seed=0)
    names, counts = np.unique([c.subgroup for c in test], return_counts=True)
    assert sorted(names) == sorted(CLASSES)
    assert (counts == 3).all()
    assert split_concepts(concepts(), seed=0)[1] == test
    assert split_concepts(concepts(), seed=1)[1] != test


def test_normalise() -> None:
    values = normalise(torch.tensor([0, 255], dtype=torch.uint8))
    torch.testing.assert_close(values, torch.tensor([-1.0, 1.0]))
