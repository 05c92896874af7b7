"""Stage 5: the foundations as `SketchFusionEncoder` loads them, fp16, below 25 MB in a wheel.

python examples/pretrain_tiny/export.py --work DIR --out DIR

After the fusion stage, ``--fusion DIR/fusion/fused-0`` writes its injection and aggregation beside
them, once alone and once with the embedding head, as a checkpoint of the task retrieval; with
``--out sketchfusion_plugins/weights/tiny`` that is what the package ships.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from clip import load_tokenizer, tokenize
from diffusers import AutoencoderTiny, UNet2DConditionModel
from fusion_models import DIM, load_trained
from safetensors.torch import load_file
from sources import SIZE
from transformers import CLIPTextModel
from unet import scheduler, text_tower

from sketchfusion_plugins.features import FusedFeatures
from sketchfusion_plugins.files import write_safetensors, write_text
from sketchfusion_plugins.null_prompt import FILENAME
from sketchfusion_plugins.presets import preset
from sketchfusion_plugins.tasks.retrieval import Retrieval

# The budget of a wheel, in bytes.
LARGEST = 25_000_000


def export(work: Path, out: Path) -> int:
    """Write ``<out>/diffusion`` and ``<out>/semantic``; returns their bytes in a wheel.

    Raises:
        FileNotFoundError: A stage has not finished.
        ValueError: The files are larger than a wheel may be.
    """
    for stage in ("vae", "clip_image", "clip_text", "unet"):
        if not (work / stage).is_dir():
            raise FileNotFoundError(f"{work / stage} is missing; train that stage first.")
    shutil.rmtree(out / "diffusion", ignore_errors=True)
    shutil.rmtree(out / "semantic", ignore_errors=True)
    diffusion = out / "diffusion"
    factor = float(load_file(work / "latents.safetensors")["scaling_factor"])
    vae = AutoencoderTiny.from_pretrained(work / "vae")
    vae.register_to_config(scaling_factor=factor)
    vae.half().save_pretrained(diffusion / "vae")
    # The encoder alone is used; decoder weights would be half of the file.
    weights = diffusion / "vae" / "diffusion_pytorch_model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if "decoder" not in name}
    write_safetensors(kept, weights, {"format": "pt"})
    unet = UNet2DConditionModel.from_pretrained(work / "unet")
    unet.half().save_pretrained(diffusion / "unet")
    scheduler().save_pretrained(diffusion / "scheduler")
    text = CLIPTextModel.from_pretrained(text_tower(work)).eval()
    with torch.no_grad():
        null = text(tokenize(load_tokenizer(work), [""])).last_hidden_state
    write_safetensors({"null_embedding": null.half()}, diffusion / FILENAME)
    image = timm.create_model(f"local-dir:{work / 'clip_image'}", pretrained=True)
    timm.models.save_for_hf(image.half(), out / "semantic", safe_serialization=True)
    for path in out.rglob("pytorch_model.bin"):
        path.unlink()
    for path in (*diffusion.rglob("config.json"), out / "semantic" / "config.json"):
        # diffusers notes the folder that it was loaded from, which is nobody else's business.
        values = json.loads(path.read_text(encoding="utf-8"))
        values.pop("_name_or_path", None)
        write_text(json.dumps(values, indent=2) + "\n", path)
    return weigh(out)


def export_fusion(fusion: Path, out: Path) -> int:
    """Write ``<out>/adapters`` and ``<out>/retrieval``, fp16, for the preset.

    Returns:
        Bytes of ``out`` in a wheel.

    Raises:
        FileNotFoundError: The fusion stage has not finished.
        ValueError: It was trained for another configuration than the preset's, or the files are
            larger than a wheel may be.
    """
    trained = load_trained(fusion)
    assert isinstance(trained.features, FusedFeatures)
    encoder = trained.features.encoder
    sources = encoder.config.diffusion.source, encoder.config.semantic.source
    shipped = preset("tiny")
    if shipped.replace(diffusion__source=sources[0], semantic__source=sources[1]) != encoder.config:
        raise ValueError(f"{fusion} was trained with {encoder.config}, the preset is {shipped}.")
    # What is shipped names the foundations by the ids that the package resolves.
    encoder.config = shipped
    task = Retrieval(encoder, dim=DIM, grid=trained.head.grid)
    task.head.load_state_dict(trained.head.state_dict())
    task.image_size = SIZE
    for part in (encoder.injector, encoder.aggregator, task.head, task.criterion):
        assert part is not None
        part.half()
    encoder.save_pretrained(out / "adapters")
    task.save_pretrained(out / "retrieval")
    return weigh(out)


def weigh(out: Path) -> int:
    """Bytes of a folder in a wheel, which deflates its files.

    Raises:
        ValueError: More than a wheel may take.
    """
    files = [path for path in out.rglob("*") if path.is_file()]
    size = sum(len(zlib.compress(path.read_bytes())) for path in files)
    if size > LARGEST:
        raise ValueError(f"{out} takes {size} bytes of a wheel, which may hold {LARGEST}.")
    return size


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fusion", type=Path, help="result of fusion.py to write too")
    options = parser.parse_args(arguments)
    size = export(options.work, options.out)
    if options.fusion is not None:
        size = export_fusion(options.fusion, options.out)
    print(f"{options.out}: {size / 1e6:.1f} MB in a wheel")


if __name__ == "__main__":
    main()
