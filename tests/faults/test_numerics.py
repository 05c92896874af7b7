"""Numbers: finite in, finite out; the same whatever the batch, the threads, the process."""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sketchfusion_plugins import SketchFusionEncoder, preset

SIDE = 64
# Sums are made in another order for another batch or number of threads: relative to the largest
# value of a map, some ten roundings of float32.
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def bundled() -> SketchFusionEncoder:
    """The encoder with the weights that are part of the package; to be read only."""
    return SketchFusionEncoder.from_pretrained("sketchfusion/tiny").eval()


def _extremes() -> dict[str, Tensor]:
    white = torch.ones(1, 3, SIDE, SIDE)
    dot = white.clone()
    dot[..., 40, 23] = -1
    noise = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return {
        "white": white,
        "black": -white,
        "one black pixel": dot,
        "one white pixel": -dot,
        "noise": noise,
        "clipped": noise.sign(),
        "as far as is accepted": 16 * noise.sign(),
        "tiny numbers": white * 1e-38,
    }


EXTREMES = _extremes()


def _digest(encoder: SketchFusionEncoder) -> str:
    with torch.no_grad():
        result = encoder(EXTREMES["noise"])
    return hashlib.sha256(result.numpy().tobytes()).hexdigest()


def _assert_close(got: Tensor, expected: Tensor) -> None:
    assert (got - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("name", EXTREMES)
@torch.no_grad()
def test_extreme_images_give_finite_maps(name: str, bundled: SketchFusionEncoder) -> None:
    levels = bundled.forward_levels(EXTREMES[name])
    result = bundled.aggregate(levels, (SIDE, SIDE))
    assert all(values.isfinite().all() for values in (*levels.maps, result))
    assert result.std() > 0


@pytest.mark.parametrize("name", ["white", "one black pixel", "clipped"])
@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_are_finite(name: str, normalize: bool, build: Any) -> None:
    encoder = build(aggregation__normalize=normalize).train()
    encoder(EXTREMES[name]).square().mean().backward()
    for parameter_name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["weights", "autocast"])
@torch.no_grad()
def test_half_precision_is_finite_and_near(
    dtype: torch.dtype, how: str, bundled: SketchFusionEncoder
) -> None:
    images = torch.cat([EXTREMES[name] for name in ("white", "black", "noise", "clipped")])
    expected = bundled(images)
    try:
        with torch.autocast("cpu", dtype, enabled=how == "autocast"):
            got = (bundled.to(dtype) if how == "weights" else bundled)(images).float()
    finally:
        bundled.float()
        # Weights went through half precision: read them again for the other tests.
        fresh = SketchFusionEncoder.from_pretrained("sketchfusion/tiny").state_dict()
        bundled.load_state_dict(fresh)
    assert got.isfinite().all()
    assert (got - expected).abs().mean() < 0.1 * expected.abs().mean()


def _overflowing(build: Any, **changes: Any) -> SketchFusionEncoder:
    """Weights whose values float16 does not hold, as Stable Diffusion 2.1's attention."""
    encoder: SketchFusionEncoder = build(**changes)
    encoder.diffusion.denoiser.unet.conv_in.weight.mul_(3e5)
    return encoder


@pytest.mark.parametrize(("draws", "chunk"), [(1, 1), (2, 8), (3, 2)])
@torch.no_grad()
def test_overflow_of_float16_is_an_error_with_advice(build: Any, draws: int, chunk: int) -> None:
    encoder = _overflowing(build, diffusion__ensemble=draws, diffusion__ensemble_chunk=chunk)
    assert encoder(EXTREMES["noise"]).isfinite().all()
    with (
        torch.autocast("cpu", torch.float16),
        pytest.raises(ValueError, match=r"overflow float16.* size: autocast to torch\.bfloat16"),
    ):
        encoder(EXTREMES["noise"])
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(EXTREMES["noise"]).isfinite().all()
    with pytest.raises(ValueError, match=r"overflow float16.* size: foundation_dtype='bfloat16'"):
        encoder.half()(EXTREMES["noise"].half())


@torch.no_grad()
def test_batches_change_nothing(bundled: SketchFusionEncoder) -> None:
    images = torch.cat(list(EXTREMES.values())[:6])
    alone = torch.cat([bundled(image[None]) for image in images])
    for size in (2, 3, 6):
        _assert_close(torch.cat([bundled(part) for part in images.split(size)]), alone)
    order = [4, 0, 5, 2, 1, 3]
    _assert_close(bundled(images[order]), alone[order])


@torch.no_grad()
def test_threads_change_nothing(bundled: SketchFusionEncoder) -> None:
    expected = bundled(EXTREMES["noise"])
    for threads in (2, 3):
        torch.set_num_threads(threads)
        _assert_close(bundled(EXTREMES["noise"]), expected)


def test_restarted_saved_and_loaded_is_the_same_to_the_byte(tmp_path: Path) -> None:
    """In processes of their own: what was computed before with other threads changes roundings."""
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from test_numerics import _digest, SketchFusionEncoder\n"
        "encoder = SketchFusionEncoder.from_pretrained('sketchfusion/tiny').eval()\n"
        "encoder.save_pretrained(sys.argv[2])\n"
        "again = SketchFusionEncoder.from_pretrained(sys.argv[2]).eval()\n"
        "print(_digest(encoder), _digest(encoder), _digest(again))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, Path(__file__).parent, tmp_path / str(number)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    digests = [digest for process in processes for digest in process.communicate()[0].split()]
    assert len(digests) == 6
    assert len(set(digests)) == 1


# --- long runs ---------------------------------------------------------------------------------


LARGEST_SLOPE = 500  # bytes per step


def _kept(step: Callable[[int], None], steps: int) -> tuple[float, int]:
    """Growth of a process's own memory in bytes per step, and of its open files."""
    slope, files = _growth(step, steps)
    if slope >= LARGEST_SLOPE:
        # The allocator takes a larger piece now and then; a leak is there the second time too.
        again, more_files = _growth(step, steps)
        slope, files = min(slope, again), max(files, more_files)
    return slope, files


def _growth(step: Callable[[int], None], steps: int) -> tuple[float, int]:
    """Bytes per step and files over the second half of the steps."""

    def resident() -> int:
        # Without pages of files, which come and go as the machine likes.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("RssAnon:")[2].split()[0])

    def files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    measured = []
    opened = 0
    for number in range(steps):
        step(number)
        if number == steps // 2:
            opened = files()
        if number >= steps // 2 and number % (steps // 20) == 0:
            gc.collect()
            measured.append((number, resident()))
    x, y = torch.tensor(measured, dtype=torch.float64).T
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum()), files() - opened


@pytest.fixture(scope="module")
def miniature() -> SketchFusionEncoder:
    small = preset("tiny").replace(
        weights="random", aggregation__out_channels=32, aggregation__norm_groups=8
    )
    return SketchFusionEncoder(small)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_five_thousand_extractions_keep_nothing(miniature: SketchFusionEncoder) -> None:
    torch.set_num_threads(1)
    images = list(EXTREMES.values())
    sizes = [(32, 32), (40, 32), (32, 48)]

    @torch.inference_mode()
    def step(number: int) -> None:
        height, width = sizes[number % 3]
        image = images[number % len(images)][..., :height, :width]
        assert miniature.eval()(image, seed=number).isfinite().all()

    slope, files = _kept(step, 5000)
    print(f"extraction: {slope:.1f} bytes per step, {files} files")
    assert files == 0
    assert slope < LARGEST_SLOPE


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_two_thousand_training_steps_keep_nothing(miniature: SketchFusionEncoder) -> None:
    torch.set_num_threads(1)
    encoder = miniature.train()
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-4)
    image = EXTREMES["noise"][..., :32, :32]
    losses = []

    def step(number: int) -> None:
        loss = (encoder(image, seed=number) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    slope, files = _kept(step, 2000)
    print(f"training: {slope:.1f} bytes per step, {files} files, loss {losses[0]} to {losses[-1]}")
    assert files == 0
    assert slope < LARGEST_SLOPE
    assert losses[-1] < losses[0]
    assert all(parameter.isfinite().all() for parameter in parameters)
