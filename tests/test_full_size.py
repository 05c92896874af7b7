"""Stable Diffusion 2.1 and CLIP ViT-L/14@336 at full size, with random weights."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from sketchfusion_plugins import SketchFusionEncoder, preset
from sketchfusion_plugins.checkpoint import adapter_state
from sketchfusion_plugins.hub import read_architecture

ALONE = "SKETCHFUSION_TEST_ALONE"


def _peak() -> float:
    """Largest resident size of this process so far, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


@pytest.mark.slow
@torch.no_grad()
def test_full_size_equals_diffusers(
    run_unet: Any, sketches: Any, request: pytest.FixtureRequest
) -> None:
    if ALONE not in os.environ:
        # A process's peak is that of all its tests, so this one gets a process of its own.
        command = [sys.executable, "-m", "pytest", "-s", "-m", "slow", "-p", "no:cacheprovider"]
        command.append(f"{request.path}::{request.node.name}")
        run = subprocess.run(
            command,
            env={**os.environ, ALONE: "1"},
            cwd=request.config.rootpath,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(run.stdout)
        assert run.returncode == 0
        return
    started = time.perf_counter()
    torch.manual_seed(0)
    config = preset("paper").replace(weights="random")
    encoder = SketchFusionEncoder(config).eval()
    built = time.perf_counter()
    image = sketches(1, 336)
    fused = encoder.forward_levels(image)
    ran = time.perf_counter()
    result = encoder.aggregate(fused, (336, 336))
    assert isinstance(result, torch.Tensor)
    print(
        f"\nbuilt in {built - started:.1f} s, levels in {ran - built:.1f} s, "
        f"peak {_peak():.2f} GB (resident)"
    )
    assert [tuple(level.shape) for level in fused.maps] == [
        (1, 640, 42, 42),
        (1, 1280, 21, 21),
        (1, 1280, 11, 11),
    ]
    assert result.shape == (1, 1280, 42, 42)
    assert all(bool(level.isfinite().all()) for level in fused.maps)
    adapters = adapter_state(encoder).values()
    assert sum(tensor.numel() * tensor.element_size() for tensor in adapters) < 60e6

    # Stable Diffusion itself with the same weights; what we cut away is left random.
    architecture = read_architecture(config.diffusion.source)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(architecture["unet"]).eval()
        vae = AutoencoderKL.from_config(architecture["vae"]).eval()
    ours = encoder.diffusion
    unet.load_state_dict(ours.denoiser.unet.state_dict(), strict=False, assign=True)
    vae.load_state_dict(ours.vae.state_dict(), strict=False, assign=True)
    for module in (unet, vae):
        for child in module.modules():
            for name, parameter in list(child._parameters.items()):
                if parameter is not None and parameter.is_meta:
                    child._parameters[name] = torch.nn.Parameter(
                        torch.randn(parameter.shape) * 0.02, requires_grad=False
                    )
    latents = vae.encode(image).latent_dist.mode() * vae.config.scaling_factor
    noise = torch.randn(1, 4, 42, 42, generator=torch.Generator().manual_seed(0))
    noisy = DDIMScheduler(**architecture["scheduler"]).add_noise(
        latents, noise, torch.tensor([195])
    )
    expected = run_unet(unet, noisy, 195, ours.denoiser.null_embedding)
    for name, level in zip(fused.names, fused.maps, strict=True):
        # Factors of signal and noise are rounded once more in add_noise.
        torch.testing.assert_close(level, expected[name], atol=1e-3, rtol=1e-3)
    print(f"with diffusers' own pass: peak {_peak():.2f} GB (resident)")
    assert _peak() < 12
