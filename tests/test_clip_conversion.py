"""A CLIP whose ``main`` has pickled weights alone, and a conversion in the cache; offline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from sketchfusion_plugins.catalogue import CATALOGUE
from sketchfusion_plugins.config import SemanticConfig
from sketchfusion_plugins.semantic import CLIP_MEAN, ClipVision
from sketchfusion_plugins.semantic_loading import load_semantic

SOURCE = "openai/clip-vit-large-patch14-336"
MAIN, EARLIER, CONVERTED = "a" * 40, "b" * 40, "c" * 40
MISSING = [f".no_exist/{MAIN}/model.safetensors", f".no_exist/{MAIN}/model.safetensors.index.json"]


@pytest.fixture
def cache(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What transformers leaves when the hub has converted for it: of that the weights alone."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / f"models--{SOURCE.replace('/', '--')}"
    for revision, commit in (("main", MAIN), ("refs/pr/9", EARLIER), ("refs/pr/10", CONVERTED)):
        reference = folder / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
    vision = json.loads((clip_folder / "config.json").read_text())
    whole = {"model_type": "clip", "architectures": ["CLIPModel"], "vision_config": vision}
    (folder / "snapshots" / MAIN / "config.json").write_text(json.dumps(whole))
    for name in MISSING:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    shutil.copy(clip_folder / "model.safetensors", folder / "snapshots" / CONVERTED)
    state = load_file(clip_folder / "model.safetensors")
    older = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    save_file(older, folder / "snapshots" / EARLIER / "model.safetensors", {"format": "pt"})
    return folder


def _state() -> tuple[str, Path | None]:
    entry = next(entry for entry in CATALOGUE if entry.preset == "paper")
    found = next(part for part in entry.weights() if part.part == "semantic")
    return found.state, found.place


def test_a_conversion_is_found(cache: Path, clip_folder: Path) -> None:
    branch = load_semantic(SemanticConfig(source=SOURCE))
    assert isinstance(branch, ClipVision)
    expected = load_semantic(SemanticConfig(source=str(clip_folder)))
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(branch(image), expected(image))
    assert branch.mean == CLIP_MEAN
    assert _state() == ("cached", cache / "snapshots" / CONVERTED)


def test_a_revision_that_was_asked_for_is_the_one(cache: Path) -> None:
    with pytest.raises(OSError, match=rf"could not load .*{MAIN}"):
        load_semantic(SemanticConfig(source=SOURCE, revision=MAIN))


@pytest.mark.parametrize("lost", ["config.json", "weights"])
def test_half_a_download_is_called_missing(lost: str, cache: Path) -> None:
    if lost == "weights":
        # Some branch that was once asked for is no conversion.
        (cache / "refs" / "refs" / "pr").rename(cache / "refs" / "branches")
    else:
        (cache / "snapshots" / MAIN / "config.json").unlink()
    with pytest.raises(OSError, match="could not load the CLIP image encoder"):
        load_semantic(SemanticConfig(source=SOURCE))
    assert _state() == ("missing", None)


def test_weights_of_main_come_first(cache: Path, clip_folder: Path) -> None:
    shutil.copy(clip_folder / "model.safetensors", cache / "snapshots" / MAIN)
    (cache / MISSING[0]).unlink()
    (cache / "snapshots" / CONVERTED / "model.safetensors").write_bytes(b"damaged")
    load_semantic(SemanticConfig(source=SOURCE))
    assert _state() == ("cached", cache / "snapshots" / MAIN)


def test_a_refusal_of_pickles_names_a_way_that_exists(cache: Path) -> None:
    shutil.rmtree(cache / "refs" / "refs")
    with pytest.raises(OSError, match=r"In Python, SketchFusionEncoder\(config, allow_pickle=True"):
        load_semantic(SemanticConfig(source=SOURCE))
