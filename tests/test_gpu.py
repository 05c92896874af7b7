"""What must hold on a CUDA device; skipped elsewhere."""

from __future__ import annotations

import pytest
import torch

from sketchfusion_plugins import SketchFusionEncoder, preset

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def build(**changes: object) -> SketchFusionEncoder:
    config = preset("tiny").replace(weights="random", injection__init="official", **changes)
    return SketchFusionEncoder(config).eval()


def test_features_do_not_depend_on_the_device() -> None:
    image = torch.rand(2, 3, 96, 128) * 2 - 1
    # TF32, which convolutions have by default, rounds to ten bits.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = build()(image)
        got = build().cuda()(image.cuda())
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_building_on_the_device_gives_the_same_foundations() -> None:
    with torch.device("cuda"):
        on_device = build()
    reference = build()
    for name, tensor in reference.diffusion.state_dict().items():
        assert torch.equal(on_device.diffusion.state_dict()[name].cpu(), tensor), name
    assert all(p.is_cuda for p in on_device.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_step_under_autocast(dtype: torch.dtype) -> None:
    encoder = build().cuda().train()
    with torch.autocast("cuda", dtype):
        loss = encoder(torch.rand(2, 3, 128, 128, device="cuda") * 2 - 1).float().square().mean()
    loss.backward()
    trained = [p for p in encoder.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_bfloat16_foundations_stay_close() -> None:
    image = torch.rand(2, 3, 128, 128, device="cuda") * 2 - 1
    with torch.no_grad():
        expected = build().cuda()(image)
        got = build(foundation_dtype="bfloat16").cuda()(image)
    similarity = torch.nn.functional.cosine_similarity(got, expected, dim=1)
    assert similarity.mean() > 0.98


def test_compiled_with_inductor() -> None:
    encoder = build().cuda()
    image = torch.rand(1, 3, 128, 128, device="cuda") * 2 - 1
    compiled = torch.compile(encoder, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), encoder(image), rtol=1e-2, atol=1e-2)


def test_compiled_with_cuda_graphs() -> None:
    """Noise is drawn on the CPU: a graph that held it would fail, or replay one seed's noise."""
    encoder = build().cuda()
    compiled = torch.compile(encoder, mode="reduce-overhead")
    # Warm-up, recording and replays, for one seed and for seeds that are an input of the graph.
    for seed in (5, 5, 5, 6, 7, 8, 6, 5):
        image = torch.rand(1, 3, 128, 128, device="cuda") * 2 - 1
        with torch.no_grad():
            torch.compiler.cudagraph_mark_step_begin()
            got = compiled(image, seed=seed).clone()
            torch.testing.assert_close(got, encoder(image, seed=seed), rtol=1e-2, atol=1e-2)
