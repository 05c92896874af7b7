"""Stage 2: the autoencoder, stride 8, four channels; diffusers' AutoencoderTiny.

python examples/pretrain_tiny/vae.py --work DIR --minutes 12

Trained on crops: what it has to learn is local. Its encoder alone is shipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from data import load_pictures
from diffusers import AutoencoderTiny
from grounds import on_grounds
from torch import Tensor
from training import autocast, normalise, parse, train

from sketchfusion_plugins.hub import read_architecture
from sketchfusion_plugins.presets import TINY_DIFFUSION

CROP = 64


def build() -> AutoencoderTiny:
    """The autoencoder of `sketchfusion_tiny`, untrained, with its decoder."""
    torch.manual_seed(0)
    return AutoencoderTiny.from_config(read_architecture(TINY_DIFFUSION)["vae"])


def reconstruction_losses(picture: Tensor, copy: Tensor) -> dict[str, Tensor]:
    """Absolute and squared error, and that of neighbours' differences, which keeps edges."""
    error = copy.float() - picture
    absolute = error.abs().mean()
    edges = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    edges = edges + (error[..., 1:] - error[..., :-1]).abs().mean()
    return {"loss": absolute + 0.5 * error.square().mean() + 0.3 * edges, "l1": absolute}


def main(arguments: Sequence[str] | None = None) -> None:
    work, budget, batch = parse(__doc__, arguments)
    batch = batch or 32
    pictures, test = load_pictures(work)
    vae = build()

    def step(generator: torch.Generator, _: float) -> Mapping[str, Tensor]:
        chosen = torch.randint(len(pictures.rows), (batch,), generator=generator)
        top, left = (8 * torch.randint(0, 9, (2,), generator=generator)).tolist()
        crop = normalise(pictures.pixels[chosen][..., top : top + CROP, left : left + CROP])
        crop = on_grounds(crop, generator)
        mirrored, grey = torch.rand(2, generator=generator).tolist()
        crop = crop.flip(-1) if mirrored < 0.5 else crop
        crop = crop.mean(1, keepdim=True).expand(-1, 3, -1, -1) if grey < 0.3 else crop
        with autocast():
            latents = vae.encode(crop).latents
            # Latents of unit size, and a decoder that forgives small errors in them.
            noise = torch.randn(latents.shape, generator=generator)
            copy = vae.decode(latents + 0.05 * noise).sample
        losses = reconstruction_losses(crop, copy)
        size = latents.float().square().mean()
        return {**losses, "loss": losses["loss"] + 1e-3 * (size - 1.0).square(), "size": size}

    def measure() -> Mapping[str, float]:
        picture = normalise(test.pixels[:: max(1, len(test.rows) // 128)])
        copy = vae.decode(vae.encode(picture).latents).sample
        return {"held_out_l1": float((copy - picture).abs().mean())}

    train("vae", work, {"vae": vae}, step, measure, budget, learning_rate=1.5e-3)
    vae.save_pretrained(work / "vae")


if __name__ == "__main__":
    main()
