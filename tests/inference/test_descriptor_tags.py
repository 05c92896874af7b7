"""Fingerprints and settings of models whose descriptors are compared."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from timm.layers import GELU, QuickGELU
from torch import nn

from sketchfusion_plugins import preset
from sketchfusion_plugins.features import FusedFeatures
from sketchfusion_plugins.foundation_settings import are_alike
from sketchfusion_plugins.inference.descriptor_tags import model_fingerprint, model_settings
from sketchfusion_plugins.inference.models import fresh_encoder, open_model
from sketchfusion_plugins.tasks.load import build_task, load_task

TINY = preset("tiny").replace(weights="random")
TINY_SETTINGS = "1ecef98d8a3679cf"  # in indexes that users have


def test_fingerprint_is_the_same_in_every_process(saved: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(saved / "retrieval", tmp_path / "moved"))
    names = ["tiny", "hog", "timm:test_vit", str(moved)]
    code = (
        "from sketchfusion_plugins.inference.descriptor_tags import model_fingerprint\n"
        "from sketchfusion_plugins.inference.models import open_model\n"
        f"for name in {names!r}: print(model_fingerprint(open_model(name, weights='random')))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    names[-1] = str(saved / "retrieval")
    torch.manual_seed(99)
    assert output == [model_fingerprint(open_model(name, weights="random")) for name in names]
    assert len(set(output)) == len(names)


def test_fingerprint_is_the_same_for_every_size(saved: Path, tmp_path: Path) -> None:
    task = load_task(saved / "retrieval")
    task.image_size = 72
    task.save_pretrained(tmp_path)
    plain, sized = (open_model(str(folder)) for folder in (saved / "retrieval", tmp_path))
    assert model_fingerprint(plain) == model_fingerprint(sized), "an index goes by its own size"


def test_fingerprint_forgets_precision_and_sees_everything_else() -> None:
    def fingerprint(seed: int = 0, **changes: object) -> str:
        return model_fingerprint(FusedFeatures(fresh_encoder(TINY.replace(**changes), seed)))

    same = fingerprint()
    assert fingerprint(foundation_dtype="bfloat16") == same
    others = [
        fingerprint(seed=1),
        fingerprint(random_seed=1),
        fingerprint(diffusion__timestep=50),
        fingerprint(diffusion__seed=1),
        fingerprint(aggregation__stride=16),
    ]
    assert len({same, *others}) == 6


def test_fingerprint_is_as_before_there_was_a_choice_to_shrink(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shrinking, keeping = (
        FusedFeatures(fresh_encoder(TINY.replace(semantic__shrink=shrink)))
        for shrink in (True, False)
    )
    now = model_fingerprint(shrinking)
    assert model_fingerprint(keeping) != now
    hashed = []
    recorder = SimpleNamespace(dumps=lambda values, **_: hashed.append(values) or "")
    monkeypatch.setattr("sketchfusion_plugins.inference.descriptor_tags.json", recorder)
    model_fingerprint(shrinking)
    assert "shrink" not in hashed[0]["semantic"] and "final_norm" in hashed[0]["semantic"]


@pytest.mark.parametrize("name", ["tiny", "clip:tiny", "timm:vit_tiny_patch16_224"])
def test_settings_tell_gelu_from_quick_gelu_where_fingerprints_do_not(name: str) -> None:
    # As of timm's vit_*_clip_* and vit_*_clip_quickgelu_*, which have the same weights.
    model = open_model(name, weights="random")
    weights, before = model_fingerprint(model), model_settings(model)
    assert model_settings(model.train()) == before
    for part in list(model.modules()):
        if isinstance(getattr(part, "act", None), nn.GELU | GELU):
            part.act = QuickGELU()
    assert model_fingerprint(model) == weights
    assert not are_alike(model_settings(model), before)
    # What versions wrote that did not know of activations.
    earlier = before.partition(".")[0]
    assert are_alike(earlier, before) and are_alike(model_settings(model), earlier)


def test_settings_tell_normalisations_of_timm_apart() -> None:
    model = open_model("timm:test_vit", weights="random")
    before = model_settings(model)
    model.normalise.mean = [0.1, 0.2, 0.3]
    assert not are_alike(model_settings(model), before)
    # What versions wrote that did not know of it.
    assert are_alike(f".{before.partition('.')[2]}", model_settings(model))


def test_fingerprint_of_maps_whose_channels_were_last_is_another_than_it_was() -> None:
    model = open_model("timm:test_resnet", weights="random")
    before = model_fingerprint(model)
    model.channels_last = True
    assert model_fingerprint(model) != before


def test_settings_of_the_bundled_model_are_as_they_were() -> None:
    assert model_settings(open_model("tiny")).partition(".")[0] == TINY_SETTINGS
    assert model_settings(open_model("hog")) == ""


def test_fingerprint_sees_one_changed_weight() -> None:
    task = build_task("retrieval", fresh_encoder(TINY), dim=8)
    before = model_fingerprint(task)
    assert model_fingerprint(task.train()) == before
    with torch.no_grad():
        next(task.head.parameters()).view(-1)[0] += 1e-3
    assert model_fingerprint(task) != before
