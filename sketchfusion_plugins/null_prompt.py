"""Embedding of the empty prompt, computed once and kept: 300 kB instead of a text encoder.

It is looked for in this order: ``null_embedding.safetensors`` in a local source folder, the user's
cache, the source's own text encoder (whose result is then cached). SDXL needs none of them: zeros
stand for an absent prompt, as its pipeline has it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from sketchfusion_plugins.config import DiffusionConfig
from sketchfusion_plugins.files import null_prompt_path, write_safetensors
from sketchfusion_plugins.hub import DIFFUSERS_LAYOUT, explain_loading, require_weights

FILENAME = "null_embedding.safetensors"
PARTS = ("text_encoder", "tokenizer")


def load_null_embedding(
    config: DiffusionConfig, unet_config: Mapping[str, Any], *, allow_pickle: bool = False
) -> Tensor:
    """Embedding of the empty prompt for a source, ``[1, length, width]``, float32.

    Raises:
        OSError: Not kept anywhere, and the source has no loadable tokenizer and text encoder.
    """
    width = unet_config["cross_attention_dim"]
    if unet_config.get("addition_embed_type") == "text_time":
        return torch.zeros(1, 77, width)
    stamp, older = _stamp(config), None
    for path in (Path(config.source) / FILENAME, cache_path(config)):
        if path.is_file():
            embedding, made_from = _read(path)
            if embedding.ndim != 3 or embedding.shape[-1] != width:
                continue
            if not (made_from and stamp and made_from != stamp):
                return embedding
            older = embedding
    try:
        embedding = encode_null_prompt(config, allow_pickle=allow_pickle)
    except OSError as error:
        if older is None or Path(config.source).is_dir():
            raise
        warnings.warn(
            f"the null prompt's embedding is that of an earlier commit of {config.source}: the "
            f"text encoder of the present one cannot be had ({error})",
            stacklevel=2,
        )
        return older
    # A read-only home costs the next start some seconds, not this one.
    with suppress(OSError):
        write_safetensors({"null_embedding": embedding}, cache_path(config), {"made_from": stamp})
    return embedding


def encode_null_prompt(config: DiffusionConfig, *, allow_pickle: bool = False) -> Tensor:
    """Run the source's text encoder on the empty prompt, then let go of it.

    Raises:
        OSError: The source has no loadable tokenizer and text encoder.
    """
    from transformers import CLIPTextModel, CLIPTokenizer

    def load(variant: str | None) -> Any:
        return CLIPTextModel.from_pretrained(
            config.source,
            subfolder="text_encoder",
            variant=variant,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            dtype=torch.float32,  # whatever it is stored in
            **options,
        )

    with explain_loading(
        "text encoder", config.source, config.revision, DIFFUSERS_LAYOUT, config.variant
    ):
        options = {"revision": config.revision or "main"}
        tokenizer = CLIPTokenizer.from_pretrained(config.source, subfolder="tokenizer", **options)
        try:
            encoder, loaded = load(config.variant)
        except OSError as error:
            # diffusers' pipelines, too, take the variant of those parts alone that have one.
            if config.variant is None:
                raise
            try:
                encoder, loaded = load(None)
            except OSError:
                raise error from None
        require_weights(loaded["missing_keys"])
        encoder.eval()
    tokens = tokenizer(
        "", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    with torch.no_grad():
        embedding: Tensor = encoder(tokens.input_ids)[0]
    return embedding.float()


def cache_path(config: DiffusionConfig) -> Path:
    """File of the user's cache (`sketchfusion_plugins.files.cache_folder`) with an embedding."""
    return null_prompt_path(config.source, config.revision, config.variant)


def _stamp(config: DiffusionConfig) -> str:
    """Tells a text encoder with its tokenizer from those that replaced them; empty without any."""
    folder = Path(config.source)
    if not folder.is_dir():
        found = None
        # A path that leads nowhere is no id.
        with suppress(ValueError):
            found = try_to_load_from_cache(
                config.source, "unet/config.json", revision=config.revision
            )
        # Of a repository, the commit: a snapshot's folder is named after it.
        return Path(found).parts[-3] if isinstance(found, str) else ""
    if not any(path.suffix in (".safetensors", ".bin") for path in folder.glob("text_encoder/*")):
        return ""
    files = sorted(path for part in PARTS for path in (folder / part).glob("*.*"))
    told = (f"{path.parent.name}/{path.name}:{path.stat().st_mtime_ns}" for path in files)
    return " ".join(told)


def _read(path: Path) -> tuple[Tensor, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            made_from = (file.metadata() or {}).get("made_from", "")
            return file.get_tensor("null_embedding").float(), made_from
    except SafetensorError as error:
        raise OSError(
            f"{path} does not hold a null prompt's embedding ({error}). Delete it and try again."
        ) from error
