"""One step of training in one process of several; run as a script, it imports no test.

python data_parallel_step.py RANK WORLD_SIZE FOLDER
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

# Before mmseg's modules: it makes up for compiled operations that mmcv-lite lacks.
# isort: split
import sketchfusion_plugins.mm  # noqa: F401

# isort: split
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from torch import nn


def batch(start: int, count: int) -> dict[str, Any]:
    """Images and labels ``start`` to ``start + count`` of one fixed set."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 64, 64), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 4, (4, 1, 64, 64), generator=generator)
    samples = []
    for label in labels:
        sample = SegDataSample(metainfo={"img_shape": (64, 64), "ori_shape": (64, 64)})
        sample.gt_sem_seg = PixelData(data=label)
        samples.append(sample)
    chosen = slice(start, start + count)
    return {"inputs": list(pixels[chosen]), "data_samples": samples[chosen]}


def build(config: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(config))
    with torch.no_grad():
        for parameter in model.backbone.encoder.injector.parameters():
            parameter.normal_(std=0.05)
    return model.train()


def step(model: nn.Module, target: nn.Module, data: dict[str, Any]) -> dict[str, torch.Tensor]:
    """One step of SGD, whose result shows gradients unlike AdamW's, which only shows their sign."""
    config = {
        "constructor": "AdapterOptimWrapperConstructor",
        "optimizer": {"type": "SGD", "lr": 0.1},
    }
    wrapper = build_optim_wrapper(target, config)
    model.train_step(data, optim_wrapper=wrapper)
    return {n: p.detach().clone() for n, p in target.named_parameters() if p.requires_grad}


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    register_all_modules(init_default_scope=False)
    model = build(json.loads((folder / "config.json").read_text()))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    data = batch(rank * (4 // world_size), 4 // world_size)
    wrapped = model
    if world_size > 1:
        rendezvous = f"file://{folder}/rendezvous"
        torch.distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=world_size)
        wrapped = MMDistributedDataParallel(model, find_unused_parameters=False)
    after = step(wrapped, model, data)
    torch.save({"before": before, "after": after}, folder / f"{rank}of{world_size}.pt")
    # An unused parameter goes unnoticed until the second step.
    step(wrapped, model, data)
    if world_size > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
