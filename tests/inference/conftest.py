"""Saved models, to be read only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sketchfusion_plugins import preset
from sketchfusion_plugins.inference.models import fresh_encoder
from sketchfusion_plugins.tasks.load import build_task


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the checkpoints ``encoder`` and ``retrieval``, on random foundations."""
    folder = tmp_path_factory.mktemp("saved")
    encoder = fresh_encoder(preset("tiny").replace(weights="random"))
    encoder.save_pretrained(folder / "encoder")
    torch.manual_seed(0)
    build_task("retrieval", encoder, dim=8).save_pretrained(folder / "retrieval")
    return folder
