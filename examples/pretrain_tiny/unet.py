"""Stage 4: the denoiser, diffusers' UNet2DConditionModel, conditioned on CLIP's frozen text tower.

python examples/pretrain_tiny/unet.py --work DIR --minutes 60

Predicts velocity (https://arxiv.org/abs/2202.00512); a fifth of the captions are empty. Latents are
computed once, in several augmented versions of every picture.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from clip import load_tokenizer, tokenize
from data import Pictures, load_pictures
from diffusers import AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from grounds import on_grounds
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm
from training import autocast, normalise, parse, random_affine, train
from transformers import CLIPTextModel

from sketchfusion_plugins.files import write_safetensors
from sketchfusion_plugins.hub import read_architecture
from sketchfusion_plugins.presets import TINY_DIFFUSION

VERSIONS = 4
EMPTY_CAPTIONS = 0.2
EMA_DECAY = 0.999


def cache_latents(work: Path, pictures: Pictures, test: Pictures) -> dict[str, Tensor]:
    """Latents ``train`` ``[VERSIONS, N, 4, h, w]`` and ``test`` ``[M, 4, h, w]``, float16.

    They are scaled to unit variance by ``scaling_factor``. The first version is the picture itself.
    """
    path = work / "latents.safetensors"
    if path.is_file() and path.stat().st_mtime > _weights(work).stat().st_mtime:
        return load_file(path)
    vae = AutoencoderTiny.from_pretrained(work / "vae").eval()
    generator = torch.Generator().manual_seed(0)

    def encode(pixels: Tensor, version: int) -> Tensor:
        done = []
        for part in tqdm(pixels.split(128), desc=f"latents {version}", disable=None):
            image = normalise(part)
            if version:
                image = random_affine(image, generator, degrees=10, scale=(0.7, 1.05), shift=0.08)
                image = on_grounds(image, generator)
            with torch.no_grad(), autocast():
                done.append(vae.encode(image).latents.float())
        return torch.cat(done)

    latents = torch.stack([encode(pictures.pixels, version) for version in range(VERSIONS)])
    factor = 1.0 / latents.std()
    kept = {
        "train": (latents * factor).half(),
        "test": (encode(test.pixels, 0) * factor).half(),
        "scaling_factor": factor,
    }
    write_safetensors(kept, path)
    return kept


def _weights(work: Path) -> Path:
    path = work / "vae" / "diffusion_pytorch_model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run vae.py --work {work} first.")
    return path


def text_tower(work: Path) -> Path:
    """The folder of the text tower that the UNet listens to: CLIP's as it was at the first call.

    CLIP may train on afterwards, while the UNet trains.

    Raises:
        FileNotFoundError: CLIP was not trained.
    """
    kept, source = work / "unet_text", work / "clip_text"
    if not kept.is_dir():
        if not source.is_dir():
            raise FileNotFoundError(f"{source} is missing; run clip.py --work {work} first.")
        part = work / "unet_text.part"
        shutil.copytree(source, part, dirs_exist_ok=True)
        part.rename(kept)
    return kept


def scheduler() -> DDPMScheduler:
    """The noise schedule of `sketchfusion_tiny`."""
    return DDPMScheduler.from_config(read_architecture(TINY_DIFFUSION)["scheduler"])


def main(arguments: Sequence[str] | None = None) -> None:
    work, budget, batch = parse(__doc__, arguments)
    batch = batch or 64
    pictures, test = load_pictures(work)
    latents = cache_latents(work, pictures, test)
    tokenizer = load_tokenizer(work)
    text = CLIPTextModel.from_pretrained(text_tower(work), attn_implementation="eager").eval()
    text.requires_grad_(False)
    schedule = scheduler()
    steps = schedule.config.num_train_timesteps
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(read_architecture(TINY_DIFFUSION)["unet"])
    unet.set_attn_processor(AttnProcessor())  # faster than fused attention at these sizes

    def error(clean: Tensor, prompt: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        with autocast():
            output = unet(schedule.add_noise(clean, noise, time), time, prompt).sample
        return F.mse_loss(output.float(), schedule.get_velocity(clean, noise, time))

    def step(generator: torch.Generator, _: float) -> Mapping[str, Tensor]:
        draw = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        chosen = draw.integers(len(pictures.rows), size=batch)
        clean = latents["train"][draw.integers(VERSIONS, size=batch), chosen].float()
        captions = [
            "" if draw.random() < EMPTY_CAPTIONS else pictures.rows[i].caption(draw) for i in chosen
        ]
        with torch.no_grad(), autocast():
            prompt = text(tokenize(tokenizer, captions)).last_hidden_state
        time = torch.randint(steps, (batch,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        return {"loss": error(clean, prompt, time, noise)}

    def measure() -> Mapping[str, float]:
        generator = torch.Generator().manual_seed(1)
        clean = latents["test"][:: max(1, len(test.rows) // 256)].float()
        prompt = text(tokenize(tokenizer, [""] * len(clean))).last_hidden_state
        time = torch.linspace(0, steps - 1, len(clean)).long()
        noise = torch.randn(clean.shape, generator=generator)
        return {"held_out_loss": float(error(clean, prompt, time, noise))}

    train("unet", work, {"unet": unet}, step, measure, budget, 7e-4, 1e-2, EMA_DECAY)
    unet.save_pretrained(work / "unet")


if __name__ == "__main__":
    main()
