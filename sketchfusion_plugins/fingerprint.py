"""Short hashes that tell models apart by their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

SAMPLES_PER_TENSOR = 16


def fingerprint_modules(modules: Mapping[str, nn.Module]) -> str:
    """Short hash of modules' weights, the same for every precision they are held in.

    It reads a few evenly spaced values of every tensor, rounded to bfloat16.
    """
    digest = hashlib.sha256()
    for name, module in modules.items():
        for key, tensor in sorted(module.state_dict().items()):
            flat = tensor.detach().flatten()
            count = min(SAMPLES_PER_TENSOR, flat.numel())
            index = torch.linspace(0, flat.numel() - 1, count, dtype=torch.float64).long()
            values = flat[index.to(flat.device)].to("cpu", torch.bfloat16)
            digest.update(f"{name}.{key}{tuple(tensor.shape)}".encode())
            digest.update(values.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
