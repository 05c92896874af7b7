"""Imports the heavy libraries one after another and prints what happened, a JSON line for each.

It runs in a process of its own, which may fail or crash without harm to who asked.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from typing import Any

GIB = 2**30


def main() -> None:
    """Run all steps; an exception is a line, and without torch there is no next one."""
    for name, step in STEPS.items():
        try:
            line = {"name": name, **step()}
        except (Exception, SystemExit) as error:
            reason = " ".join(str(error).split())
            line = {"name": name, "error": f"{type(error).__name__}: {reason}"[:400]}
        print(json.dumps(line), flush=True)
        if name == "torch" and "error" in line:
            break


def _torch() -> dict[str, Any]:
    import torch

    cuda, hip = torch.version.cuda, getattr(torch.version, "hip", None)
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU alone"
    return {"found": f"{torch.__version__}, built for {build}"}


def _devices() -> dict[str, Any]:
    import torch

    found = [f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        # torch only warns of a GPU that it has no kernels for.
        (torch.ones(1, device=f"cuda:{index}") + 1).item()
        found.append(f"cuda:{index} ({about.name}, {about.total_memory / GIB:.0f} GiB)")
    if torch.backends.mps.is_available():
        found.append("mps")
    return {"found": ", ".join(found)}


def _torchvision() -> dict[str, Any]:
    import torchvision

    return {"found": f"{torchvision.__version__}"}


def _timm() -> dict[str, Any]:
    import timm

    import sketchfusion_plugins

    names = timm.list_models("sketchfusion*")
    if not names:
        raise RuntimeError(f"{sketchfusion_plugins.__name__} registered no models.")
    return {"found": f"knows {', '.join(names)}"}


def _diffusers() -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    return {"found": f"gives {UNet2DConditionModel.__name__} and {AutoencoderKL.__name__}"}


def _transformers() -> dict[str, Any]:
    from transformers import CLIPTextModel, CLIPVisionModel

    return {"found": f"gives {CLIPVisionModel.__name__} and {CLIPTextModel.__name__}"}


STEPS: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": _torch,
    "devices": _devices,
    "torchvision": _torchvision,
    "timm": _timm,
    "diffusers": _diffusers,
    "transformers": _transformers,
}
