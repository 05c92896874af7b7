"""The empty prompt's embedding: the same as diffusers' pipeline's, computed once, kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from sketchfusion_plugins.config import DiffusionConfig
from sketchfusion_plugins.null_prompt import (
    FILENAME,
    cache_path,
    encode_null_prompt,
    load_null_embedding,
)

WIDTH = {"cross_attention_dim": 32}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKETCHFUSION_CACHE", str(tmp_path / "cache"))


def _config(folder: Path) -> DiffusionConfig:
    return DiffusionConfig(source=str(folder))


def _text_weights(folder: Path) -> Path:
    return next((folder / "text_encoder").glob("*.safetensors"))


@pytest.fixture(scope="module")
def expected(pipeline_folder: Path) -> Tensor:
    """The empty prompt as diffusers' own pipeline encodes it."""
    encoder = CLIPTextModel.from_pretrained(pipeline_folder, subfolder="text_encoder").eval()
    pipeline = diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=encoder,
        tokenizer=CLIPTokenizer.from_pretrained(pipeline_folder, subfolder="tokenizer"),
        unet=None,
        scheduler=diffusers.PNDMScheduler.from_pretrained(pipeline_folder, subfolder="scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with torch.no_grad():
        embedding: Tensor = pipeline.encode_prompt("", torch.device("cpu"), 1, False)[0]
    return embedding


def test_equals_diffusers_pipeline(pipeline_folder: Path, expected: Tensor) -> None:
    got = load_null_embedding(_config(pipeline_folder), WIDTH)
    assert torch.equal(got, expected)
    assert got.shape == (1, 8, 32)
    assert not got.requires_grad


def test_second_time_comes_from_the_cache(pipeline_copy: Path, expected: Tensor) -> None:
    config = _config(pipeline_copy)
    load_null_embedding(config, WIDTH)
    assert torch.equal(load_file(cache_path(config))["null_embedding"], expected)
    shutil.rmtree(pipeline_copy / "text_encoder")
    shutil.rmtree(pipeline_copy / "tokenizer")
    assert torch.equal(load_null_embedding(config, WIDTH), expected)


def test_cache_does_not_outlive_the_text_encoder_it_was_made_from(
    pipeline_copy: Path, expected: Tensor
) -> None:
    config = _config(pipeline_copy)
    load_null_embedding(config, WIDTH)
    path = _text_weights(pipeline_copy)
    state = {name: 2 * tensor for name, tensor in load_file(path).items()}
    save_file(state, path, {"format": "pt"})
    # Clocks of some file systems are coarse.
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))
    got = load_null_embedding(config, WIDTH)
    assert torch.equal(got, encode_null_prompt(config))
    assert not torch.allclose(got, expected)


def test_cache_does_not_outlive_the_tokenizer(pipeline_copy: Path, expected: Tensor) -> None:
    config = _config(pipeline_copy)
    load_null_embedding(config, WIDTH)
    for path in (pipeline_copy / "tokenizer").glob("*_*.json"):
        told = json.loads(path.read_text())
        # Padded by the end's token, as Stable Diffusion's first versions are.
        path.write_text(json.dumps({**told, "pad_token": told["eos_token"]}))
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))
    got = load_null_embedding(config, WIDTH)
    assert torch.equal(got, encode_null_prompt(config))
    assert not torch.allclose(got, expected)


def test_cache_serves_a_folder_whose_weights_were_deleted(
    pipeline_copy: Path, expected: Tensor
) -> None:
    config = _config(pipeline_copy)
    load_null_embedding(config, WIDTH)
    _text_weights(pipeline_copy).unlink()
    assert (pipeline_copy / "text_encoder" / "config.json").exists()
    assert torch.equal(load_null_embedding(config, WIDTH), expected)


def test_file_in_the_folder_comes_first(pipeline_copy: Path, expected: Tensor) -> None:
    config = _config(pipeline_copy)
    load_null_embedding(config, WIDTH)
    own = torch.randn(1, 5, 32, dtype=torch.float16)
    save_file({"null_embedding": own}, pipeline_copy / FILENAME)
    got = load_null_embedding(config, WIDTH)
    assert got.dtype == torch.float32
    assert torch.equal(got, own.float())
    assert not torch.equal(got[:, :5], expected[:, :5])


def test_file_of_another_width_is_passed_over(pipeline_copy: Path, expected: Tensor) -> None:
    save_file({"null_embedding": torch.zeros(1, 8, 48)}, pipeline_copy / FILENAME)
    assert torch.equal(load_null_embedding(_config(pipeline_copy), WIDTH), expected)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", None])
def test_damaged_file_is_named(content: bytes | None, pipeline_copy: Path) -> None:
    path = pipeline_copy / FILENAME
    if content is None:
        save_file({"other": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(OSError, match=rf"{FILENAME} does not hold.*Delete it"):
        load_null_embedding(_config(pipeline_copy), WIDTH)


def test_no_source_at_all(pipeline_copy: Path) -> None:
    shutil.rmtree(pipeline_copy / "text_encoder")
    with pytest.raises(OSError, match="could not load the text encoder"):
        load_null_embedding(_config(pipeline_copy), WIDTH)


def test_sdxl_needs_no_text_encoder(tmp_path: Path) -> None:
    values = {"cross_attention_dim": 2048, "addition_embed_type": "text_time"}
    got = load_null_embedding(_config(tmp_path), values)
    assert torch.equal(got, torch.zeros(1, 77, 2048))


def test_unwritable_cache_is_no_obstacle(
    pipeline_folder: Path, expected: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SKETCHFUSION_CACHE", str(tmp_path / "file"))
    assert torch.equal(load_null_embedding(_config(pipeline_folder), WIDTH), expected)


def test_cache_folder_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DiffusionConfig()
    monkeypatch.setenv("SKETCHFUSION_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_path(config).parent == tmp_path / "own" / "null_prompts"
    monkeypatch.delenv("SKETCHFUSION_CACHE")
    assert cache_path(config).parent == tmp_path / "xdg" / "sketchfusion" / "null_prompts"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    expected = tmp_path / "home" / ".cache" / "sketchfusion" / "null_prompts"
    assert cache_path(config).parent == expected


def test_cache_tells_sources_and_revisions_apart(tmp_path: Path) -> None:
    sources: list[dict[str, Any]] = [
        {},
        {"revision": "fp16"},
        {"source": "someone/else"},
        {"source": str(tmp_path)},
    ]
    paths = {cache_path(DiffusionConfig(**values)) for values in sources}
    assert len(paths) == len(sources)
    assert cache_path(DiffusionConfig(timestep=1)) == cache_path(DiffusionConfig())
