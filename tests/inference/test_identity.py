"""What tells a model from others of its name."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
import torch

from sketchfusion_plugins import preset
from sketchfusion_plugins.inference.identity import identify, identity_of
from sketchfusion_plugins.inference.models import fresh_encoder
from sketchfusion_plugins.tasks.load import build_task

TINY = preset("tiny").replace(weights="random")


def digest(folder: Path) -> str:
    return sha256((folder / "adapters.safetensors").read_bytes()).hexdigest()[:8]


def test_identify(saved: Path) -> None:
    assert identify("hog") == "hog"
    assert identify("timm:test_vit", "random") == "timm:test_vit (random)"
    assert identify("clip:tiny", "random") == "clip:tiny (random foundations)"
    for name in ("retrieval", "encoder"):
        folder = saved / name
        expected = f"{folder} (random foundations, adapters {digest(folder)})"
        assert identify(str(folder)) == expected


def test_identity_holds_what_changes_the_measures(saved: Path) -> None:
    assert identity_of("hog", "random", None, 3) == {}
    assert identity_of("timm:test_vit", "random") == {"weights": "random"}
    fresh = {"foundations": "random", "dtype": "float32", "seed": 3}
    assert identity_of("tiny", "random", None, 3) == fresh
    # A precision that was asked for is the same as one that is the model's own.
    assert identity_of("tiny", "random", "float32", 3) == fresh
    assert identity_of("tiny", "random", "bfloat16", 3) == {**fresh, "dtype": "bfloat16"}
    folder = saved / "retrieval"
    trained = {"foundations": "random", "dtype": "float32", "adapters": digest(folder)}
    # A checkpoint has its own foundations, and no adapters to draw.
    assert identity_of(str(folder), "pretrained", None, 3) == trained
    assert identity_of(str(folder), dtype="bfloat16") == {**trained, "dtype": "bfloat16"}


def test_identity_sees_one_changed_weight(saved: Path, tmp_path: Path) -> None:
    task = build_task("retrieval", fresh_encoder(TINY), dim=8)
    task.save_pretrained(tmp_path)
    before = identity_of(str(tmp_path))
    task.save_pretrained(tmp_path)
    assert identity_of(str(tmp_path)) == before
    with torch.no_grad():
        next(task.head.parameters()).view(-1)[0] += 1e-3
    task.save_pretrained(tmp_path)
    assert identity_of(str(tmp_path)) != before


def test_models_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model 'nonsense'"):
        identity_of("nonsense")
    with pytest.raises(OSError, match=r"expected adapters\.safetensors in"):
        identity_of(str(tmp_path))
