"""The noise operator, as PyTorch's compilers see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sketchfusion_plugins.noise import draw_noise


@pytest.mark.parametrize("draws", [1, 3])
def test_the_operator_is_what_it_says(draws: int) -> None:
    """PyTorch's own checks: schema, the shapes promised to tracers, registration."""
    operator = torch.ops.sketchfusion.seeded_noise.default
    torch.library.opcheck(operator, (torch.zeros(2, 4, 8, 6), draws, 7))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    latents = torch.zeros(1, 4, 8, 8)
    expected = draw_noise(latents, 2, 0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        got = draw_noise(latents, 2, 0)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("seed", [np.int64(5), torch.tensor(5)])
def test_whole_numbers_of_other_kinds_are_seeds(seed: Any) -> None:
    latents = torch.zeros(1, 4, 8, 8)
    assert torch.equal(draw_noise(latents, 2, seed), draw_noise(latents, 2, 5))


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63)])
def test_the_largest_seeds(seed: int) -> None:
    assert draw_noise(torch.zeros(1, 4, 8, 8), 1, seed).isfinite().all()


def test_what_is_no_seed_is_refused() -> None:
    latents = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match=rf"of {-(2**63)} to {2**63 - 1}, got {2**63}"):
        draw_noise(latents, 1, 2**63)
    wrong: Any
    for wrong in (1.5, "1", torch.tensor([1, 2])):
        with pytest.raises(TypeError, match="seed must be an integer, got"):
            draw_noise(latents, 1, wrong)
    wrong = torch.Generator()
    with pytest.raises(TypeError, match="Pass a generator as generator="):
        draw_noise(latents, 1, wrong)


class Noisy(torch.nn.Module):
    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return latents + draw_noise(latents, 1, 3)


def test_exported_programs_are_loaded_after_the_operator(tmp_path: Path) -> None:
    latents = torch.zeros(1, 4, 8, 8)
    torch.export.save(torch.export.export(Noisy(), (latents,)), tmp_path / "program.pt2")
    code = (
        "import sketchfusion_plugins.noise, torch\n"
        f"program = torch.export.load({str(tmp_path / 'program.pt2')!r}).module()\n"
        f"torch.save(program(torch.zeros(1, 4, 8, 8)), {str(tmp_path / 'noise.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.equal(torch.load(tmp_path / "noise.pt"), draw_noise(latents, 1, 3))


def test_cuda_graphs_are_told_to_leave_it_out() -> None:
    """A graph cannot hold what is drawn on the CPU; reduce-overhead asks for this tag alone."""
    assert torch.Tag.cudagraph_unsafe in torch.ops.sketchfusion.seeded_noise.default.tags


def test_compiled_seeds_give_their_own_noise() -> None:
    latents = torch.zeros(2, 4, 8, 6)
    compiled = torch.compile(draw_noise, fullgraph=True, backend="aot_eager")
    for seed in (5, 5, 6, 7):
        assert torch.equal(compiled(latents, 2, seed), draw_noise(latents, 2, seed))
