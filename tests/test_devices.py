"""No tensor of the CPU meets one of a GPU: held without a GPU, by tensors that have no values."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sketchfusion_plugins import SketchFusionEncoder, preset
from sketchfusion_plugins.features import (
    ClipFeatures,
    ConcatenatedFeatures,
    DiffusionFeatures,
    FusedFeatures,
    pixel_similarity,
)
from sketchfusion_plugins.frequency import BandGains
from sketchfusion_plugins.heads.matching import match_points
from sketchfusion_plugins.heads.query import ink_cells
from sketchfusion_plugins.tasks.load import build_task

# As the released code has it, with all that our defaults leave out.
OFFICIAL = {
    "in_channels": 4,
    "diffusion__ensemble": 5,
    "diffusion__ensemble_chunk": 2,
    "diffusion__posterior": "sample",
    "injection__init": "official",
    "aggregation__normalize": True,
    "aggregation__dropout": 0.5,
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """Where ``device="cuda"`` makes tensors without values, CUDA or not."""
    # What looks at values does not, as while torch compiles.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return FakeTensorMode(allow_non_fake_inputs=True)


def on_gpu(module: nn.Module, gpu: FakeTensorMode) -> Any:
    """A copy of a module as it would be there."""
    moved = deepcopy(module)
    with gpu:
        for part in moved.modules():
            for name, value in part.named_parameters(recurse=False):
                there = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                setattr(part, name, nn.Parameter(there, value.requires_grad))
            for name, value in part.named_buffers(recurse=False):
                setattr(part, name, torch.empty(value.shape, dtype=value.dtype, device="cuda"))
    return moved


@pytest.fixture(scope="module")
def encoder() -> SketchFusionEncoder:
    return SketchFusionEncoder(preset("tiny").replace(weights="random"))


def _images(*shape: int) -> Tensor:
    return torch.empty(*shape, device="cuda")


def test_a_mixture_is_noticed(gpu: FakeTensorMode) -> None:
    with gpu, pytest.raises(RuntimeError, match="same device"):
        _images(3) + torch.empty(3)


class Copies(TorchDispatchMode):
    """Counts copies from the CPU, which wait for all that a GPU has begun."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.device.type == "cuda":
            given = [value for value in args if isinstance(value, Tensor)]
            self.count += any(value.device.type == "cpu" for value in given)
        return result


def test_copies_are_counted(gpu: FakeTensorMode) -> None:
    with gpu, Copies() as copies:
        _images(3) + torch.tensor([1.0, 2.0, 3.0], device="cuda")
        torch.empty(3).cuda()
    assert copies.count == 2


def test_encoder_copies_nothing_from_the_cpu(
    encoder: SketchFusionEncoder, gpu: FakeTensorMode
) -> None:
    """But the noise, whose operator does so without waiting, and is not looked into here."""
    moved = on_gpu(encoder, gpu)
    with gpu, Copies() as copies:
        moved(_images(2, 3, 128, 128))
    assert copies.count == 0


def test_normalisation_of_latents_copies_nothing_from_the_cpu(
    encoder: SketchFusionEncoder, gpu: FakeTensorMode
) -> None:
    moved = on_gpu(encoder, gpu)
    moved.diffusion.latents_mean = moved.diffusion.latents_std = (0.5, 1.0, 1.5, 2.0)
    with gpu, Copies() as copies:
        moved(_images(2, 3, 128, 128))
    assert copies.count == 0


def test_ink_on_apples_gpus(gpu: FakeTensorMode) -> None:
    """Their adaptive pooling is right for multiples of the cells alone (pytorch#96056).

    Here torch has no such kernel: only what goes to the CPU and comes back gives an answer.
    """
    with gpu:
        cells = ink_cells(torch.empty(1, 3, 256, 256, device="mps"), (14, 14))
    assert cells.device.type == "mps" and cells.shape == (1, 14, 14)


@pytest.mark.parametrize("changes", [{}, OFFICIAL], ids=["default", "official"])
def test_encoder(changes: dict[str, Any], gpu: FakeTensorMode) -> None:
    config = preset("tiny").replace(weights="random", **changes)
    moved = on_gpu(SketchFusionEncoder(config), gpu).train()
    moved.set_grad_checkpointing()
    with gpu:
        got = moved(_images(2, config.in_channels, 100, 72))
    assert got.device.type == "cuda" and got.shape == (2, moved.aggregator.out_channels, 13, 9)


@pytest.mark.parametrize(
    "kind", [FusedFeatures, DiffusionFeatures, ClipFeatures, ConcatenatedFeatures]
)
def test_features(kind: Any, encoder: SketchFusionEncoder, gpu: FakeTensorMode) -> None:
    features = kind(on_gpu(encoder, gpu)).eval()
    with gpu, torch.no_grad():
        described = features.describe(_images(2, 3, 128, 128))
        found = pixel_similarity(features, _images(2, 3, 128, 128), _images(2, 3, 256, 192))
    assert described.device.type == found.device.type == "cuda"
    assert found.shape == (2, 256, 192)


@pytest.mark.parametrize(
    ("name", "points_on"),
    [
        ("recognition", "cuda"),
        ("query_segmentation", "cuda"),
        ("correspondence", "cuda"),
        ("correspondence", "cpu"),
    ],
)
def test_losses(
    name: str, points_on: str, encoder: SketchFusionEncoder, gpu: FakeTensorMode
) -> None:
    """Retrieval's depends on values."""
    settings: dict[str, Any] = {"classes": ["a", "b", "c"]} if name == "recognition" else {}
    task = on_gpu(build_task(name, encoder, **settings), gpu).train()
    with gpu:
        image, photo = _images(2, 3, 128, 128), _images(2, 3, 192, 128)
        pixels = torch.empty(2, 192, 128, dtype=torch.bool, device="cuda")
        points = torch.empty(2, 8, 2, device=points_on)
        losses = task.loss(
            {
                "image": image,
                "label": torch.empty(2, dtype=torch.long, device="cuda"),
                "sketch": image,
                "photo": photo,
                "mask": pixels,
                "valid": pixels,
                "source": image,
                "target": image,
                "source_points": points,
                "target_points": points,
                "visible": torch.empty(2, 8, dtype=torch.bool, device=points_on),
            }
        )
    assert {value.device.type for value in losses.values()} == {"cuda"}


@pytest.mark.parametrize("points_on", ["cpu", "cuda"])
def test_matching_and_gains(points_on: str, gpu: FakeTensorMode) -> None:
    gains = on_gpu(BandGains(16), gpu)
    with gpu:
        source, target = _images(2, 16, 8, 8), _images(2, 16, 8, 8)
        points = torch.empty(2, 5, 2, device=points_on)
        found = match_points(source, target, points, source_stride=8, target_stride=8)
        assert gains(_images(1, 16, 9, 7)).device.type == "cuda"
    assert found.shape == (2, 5, 2)
