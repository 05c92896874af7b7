"""What is written down of the presets, held against the models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sketchfusion_plugins import SketchFusionEncoder
from sketchfusion_plugins.catalogue import CATALOGUE, LICENCES, CatalogueEntry, hub_cache
from sketchfusion_plugins.hub import BUNDLED_WEIGHTS
from sketchfusion_plugins.inference.models import default_size, find_config
from sketchfusion_plugins.null_prompt import cache_path
from sketchfusion_plugins.presets import PRESETS

ENTRIES = {entry.preset: entry for entry in CATALOGUE}


def test_all_presets_and_timm_names_are_listed() -> None:
    import timm

    assert list(ENTRIES) == list(PRESETS)
    names = {name for entry in CATALOGUE for name in entry.timm_names}
    registered = timm.list_models("sketchfusion*")
    tagged = {name for model in registered for name in timm.list_models(f"{model}*")}
    assert set(registered) | tagged <= names
    for entry in CATALOGUE:
        for name in entry.timm_names:
            assert find_config(name) == PRESETS[entry.preset]


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.preset)
def test_sizes_and_parameters_are_the_models_own(entry: CatalogueEntry) -> None:
    with torch.device("meta"):
        encoder = SketchFusionEncoder(PRESETS[entry.preset].replace(weights="random"))
    counted = encoder.trainable_parameters()
    assert (counted.trainable, counted.total) == (entry.trained, entry.parameters)
    assert entry.size == default_size(entry.preset)


def test_licences_are_those_that_timm_is_told() -> None:
    from timm_adapters.variants import TAG_PRESETS, default_cfgs

    told = {
        "creativeml-openrail-m (openrail++)": "CreativeML Open RAIL++-M",
        "creativeml-openrail-m (openrail++), MIT": "CreativeML Open RAIL++-M",
        "creativeml-openrail-m": "CreativeML Open RAIL-M",
        "cc-by-sa-4.0": "CC BY-SA 4.0",
    }
    for cfg in default_cfgs.values():
        for tag, values in cfg.cfgs.items():
            source = PRESETS[TAG_PRESETS[tag]].diffusion.source
            assert told[values.license] == LICENCES[source]


def _put(cache: Path, source: str, *files: str) -> Path:
    folder = cache / f"models--{source.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("0123abc")
    snapshot = folder / "snapshots" / "0123abc"
    for name in files:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).touch()
    return snapshot


def test_weights_are_looked_for_in_the_package_and_in_the_cache(tmp_path: Path) -> None:
    tiny = ENTRIES["tiny"].weights(tmp_path)
    assert [(part.part, part.state) for part in tiny] == [
        ("diffusion", "bundled"),
        ("semantic", "bundled"),
        ("adapters", "bundled"),
        ("adapters", "bundled"),
    ]
    assert [part.place for part in tiny[2:]] == [
        BUNDLED_WEIGHTS["sketchfusion/tiny"],
        BUNDLED_WEIGHTS["sketchfusion/tiny-retrieval"],
    ]
    paper = ENTRIES["paper"]
    assert [part.state for part in paper.weights(tmp_path)] == ["missing", "missing"]
    diffusion, semantic = (part.source for part in paper.weights(tmp_path))
    weights = "diffusion_pytorch_model.safetensors"
    _put(tmp_path, diffusion, f"vae/{weights}", "vae/config.json", "unet/config.json")
    assert paper.weights(tmp_path)[0].state == "missing", "half a download"
    _put(tmp_path, diffusion, "unet/diffusion_pytorch_model.fp16.safetensors")
    assert paper.weights(tmp_path)[0].state == "missing", "a variant that nobody asks for"
    place = _put(tmp_path, diffusion, f"unet/{weights}")
    _put(tmp_path, diffusion, "scheduler/scheduler_config.json")
    assert paper.weights(tmp_path)[0].state == "missing", "the null prompt cannot be encoded"
    text = ("tokenizer/tokenizer_config.json", "text_encoder/config.json")
    _put(tmp_path, diffusion, *text, "text_encoder/model.safetensors")
    _put(tmp_path, semantic, "model.safetensors", "config.json")
    found = paper.weights(tmp_path)
    assert [part.state for part in found] == ["cached", "cached"]
    assert found[0].place == place


def test_an_encoded_null_prompt_needs_no_text_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SKETCHFUSION_CACHE", raising=False)
    entry, weights = ENTRIES["cleandift"], "diffusion_pytorch_model.safetensors"
    # CleanDIFT's own UNet takes the place of the source's.
    needed = ("scheduler/scheduler_config.json", "unet/config.json", "vae/config.json")
    _put(tmp_path, entry.weights(tmp_path)[0].source, *needed, f"vae/{weights}")
    assert entry.weights(tmp_path)[0].state == "missing"
    embedding = cache_path(PRESETS["cleandift"].diffusion)
    assert tmp_path in embedding.parents
    embedding.parent.mkdir(parents=True)
    embedding.touch()
    assert entry.weights(tmp_path)[0].state == "cached"


def test_a_link_to_nothing_and_pickled_weights_are_no_weights(tmp_path: Path) -> None:
    source = PRESETS["paper"].semantic.source
    snapshot = _put(tmp_path, source, "pytorch_model.bin")
    (snapshot / "model.safetensors").symlink_to(tmp_path / "blobs" / "gone")
    assert ENTRIES["paper"].weights(tmp_path)[1].state == "missing"


def test_cleandift_s_own_file_is_looked_for(tmp_path: Path) -> None:
    _put(tmp_path, "CompVis/cleandift", "cleandift_sd21_unet.safetensors")
    parts = {part.part: part for part in ENTRIES["cleandift"].weights(tmp_path)}
    assert list(parts) == ["diffusion", "UNet", "semantic"]
    assert parts["UNet"].state == "cached" and parts["diffusion"].state == "missing"


def test_the_cache_is_where_the_hub_s_library_keeps_it() -> None:
    from huggingface_hub import constants

    assert hub_cache() == Path(constants.HF_HUB_CACHE)
