"""A batch that two processes share trains as one process with all of it would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("pytorch_metric_learning")

from sketchfusion_plugins.losses.gathering import of_all_processes
from sketchfusion_plugins.tasks.retrieval import Retrieval

WORKER = """
import json, sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from sketchfusion_plugins import EncoderConfig, SketchFusionEncoder
from sketchfusion_plugins.tasks.retrieval import Retrieval

class Loss(nn.Module):
    def __init__(self, task):
        super().__init__()
        self.task = task

    def forward(self, batch):
        return self.task.loss(batch)["loss"]

folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
)
given = torch.load(f"{folder}/given.pt")
encoder = SketchFusionEncoder(EncoderConfig.from_dict(json.loads(given["config"])))
task = Retrieval(encoder, dim=16, grid=2, loss=given["loss"]).train()
task.load_state_dict(given["state"])
share = {name: values.chunk(2)[rank] for name, values in given["batch"].items()}
model = DistributedDataParallel(Loss(task))
loss = model(share)
loss.backward()
grads = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
torch.save({"loss": loss.detach(), "grads": grads}, f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("loss", ["contrast", "triplet"])
def test_two_processes_train_on_their_union(
    loss: str, build: Any, sketches: Any, two_processes: Any, tmp_path: Path
) -> None:
    task = Retrieval(build(), dim=16, grid=2, loss=loss).train()
    # Two pairs of one instance, one in each process.
    batch = {
        "sketch": sketches(6),
        "photo": sketches(6).flip(-1),
        "instance": torch.tensor([0, 1, 2, 3, 1, 5]),
    }
    given = {
        "config": json.dumps(task.encoder.config.to_dict()),
        "state": task.state_dict(),
        "batch": batch,
        "loss": loss,
    }
    torch.save(given, tmp_path / "given.pt")
    with two_processes(WORKER, tmp_path):
        expected = task.loss(batch)["loss"]
        expected.backward()
    alone = Retrieval(task.encoder, dim=16, grid=2, loss=loss).train()
    alone.load_state_dict(task.state_dict())
    half = {name: values[:3] for name, values in batch.items()}
    assert abs(alone.loss(half)["loss"] - expected) > 1e-3
    known = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found["loss"], expected.detach())
        assert set(found["grads"]) == set(known)
        for name, grad in known.items():
            torch.testing.assert_close(
                found["grads"][name], grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_one_process_alone_keeps_its_rows() -> None:
    rows = torch.ones(2, 3)
    assert of_all_processes(rows) is rows
