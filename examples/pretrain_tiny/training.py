"""What the three training stages share: a budget, checkpoints that survive a kill, a log."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from sketchfusion_plugins.files import replacing

CHECKPOINT_SECONDS = 120
LOG_SECONDS = 30
# A step that seems to take longer was paused (SIGSTOP, a closed lid), which costs no budget.
LONGEST_STEP = 60.0


@dataclass(frozen=True)
class Budget:
    """How long to train, over all runs together: minutes, or steps (then reproducible).

    Raises:
        ValueError: Not exactly one of them is given, or it is not positive.
    """

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.minutes, self.steps) if value is not None]
        if len(given) != 1 or given[0] <= 0:
            raise ValueError(
                f"give --minutes or --steps, one of them and above 0; got {self.minutes} minutes "
                f"and {self.steps} steps."
            )

    def spent(self, seconds: float, steps: int) -> float:
        """Share of the budget that is used up, 0..1."""
        if self.steps is not None:
            return min(1.0, steps / self.steps)
        assert self.minutes is not None
        return min(1.0, seconds / (60 * self.minutes))


def parse(description: str, arguments: Sequence[str] | None) -> tuple[Path, Budget, int]:
    """Work folder, budget and batch size (0 for the stage's own) from the command line."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder that data.py filled")
    parser.add_argument("--minutes", type=float, help="budget over all runs of this stage")
    parser.add_argument("--steps", type=int, help="budget in steps instead")
    parser.add_argument("--batch", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        budget = Budget(options.minutes, options.steps)
    except ValueError as error:
        parser.error(str(error))
    return options.work, budget, options.batch


def train(
    stage: str,
    work: Path,
    modules: Mapping[str, nn.Module],
    step: Callable[[torch.Generator, float], Mapping[str, Tensor]],
    measure: Callable[[], Mapping[str, float]],
    budget: Budget,
    learning_rate: float,
    weight_decay: float = 0.0,
    ema_decay: float = 0.0,
    frozen: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
) -> None:
    """Train until the budget is spent; go on where a killed run stopped.

    The random numbers of a step depend on its number alone, so that with a budget in steps a run
    that was killed ends where an undisturbed one does.

    Args:
        stage: Name of checkpoint ``<work>/<stage>.pt`` and log ``<work>/<stage>.jsonl``.
        work: Work folder.
        modules: What trains; at the end they hold the average of the weights, if one is kept.
        step: Losses of one batch, given random numbers and the share of the budget that is spent;
            ``"loss"`` is minimised.
        measure: Held-out figures, of the modules in eval mode.
        budget: When to stop.
        learning_rate: Peak; a warm-up of 100 steps, then a cosine over the budget.
        weight_decay: Of matrices and convolutions alone.
        ema_decay: Of an average of the weights; 0 for none.
        frozen: Parts of the names of tensors that a checkpoint leaves out unless they train, so
            that a run that goes on has those of the modules it is given.
        about: What a run that goes on must have in common with the one that was killed.

    Raises:
        ValueError: The checkpoint is of another run.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{stage}.pt"
    model = nn.ModuleDict(modules)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    average = [p.detach().clone() for p in parameters] if ema_decay else []
    trained = {name for name, p in model.named_parameters() if p.requires_grad}

    def kept_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: value
            for name, value in state.items()
            if name in trained or not any(part in name for part in frozen)
        }

    done, seconds = 0, 0.0
    if path.is_file():
        state = torch.load(path, weights_only=True)
        if state.get("about", about) != about:
            raise ValueError(
                f"{path} is of a run with {state['about']}, expected {about}. Give this run a name "
                "of its own, or delete the checkpoint."
            )
        model.load_state_dict({**model.state_dict(), **kept_part(state["model"])})
        optimizer.load_state_dict(state["optimizer"])
        for kept, saved in zip(average, state["average"], strict=True):
            kept.copy_(saved)
        done, seconds = state["step"], state["seconds"]
        print(f"{stage}: goes on after step {done}, {seconds / 60:.1f} minutes", flush=True)

    def save() -> None:
        state: dict[str, Any] = {
            "model": kept_part(model.state_dict()),
            "optimizer": optimizer.state_dict(),
            "average": average,
            "step": done,
            "seconds": seconds,
            "about": about,
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def log(**values: float) -> None:
        entry = {"step": done, "seconds": round(seconds, 1), **values}
        with (work / f"{stage}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    model.train()
    saved_at = logged_at = seconds
    totals: dict[str, float] = {}
    counted = 0
    bar = tqdm(total=100, desc=stage, unit="%", disable=None)
    while (spent := budget.spent(seconds, done)) < 1.0:
        started = time.monotonic()
        rate = learning_rate * min(1.0, (done + 1) / 100) * cosine(spent)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = step(torch.Generator().manual_seed(done), spent)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        for module in modules.values():
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        done += 1
        if average:
            # Early on a long average would remember little but the initialisation.
            weight = 1.0 - min(ema_decay, (done + 1) / (done + 10))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], weight)
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + float(value.detach())
        counted += 1
        seconds += min(LONGEST_STEP, time.monotonic() - started)
        if seconds - logged_at >= LOG_SECONDS:
            means = {name: round(total / counted, 5) for name, total in totals.items()}
            log(**means, learning_rate=rate)
            bar.set_postfix(means, step=done)
            bar.update(100 * spent - bar.n)
            totals, counted, logged_at = {}, 0, seconds
        if seconds - saved_at >= CHECKPOINT_SECONDS:
            model.eval()
            with torch.no_grad():
                log(**measure())
            model.train()
            save()
            saved_at = seconds
    bar.close()
    save()
    with torch.no_grad():
        for parameter, kept in zip(parameters, average, strict=bool(average)):
            parameter.copy_(kept)
    model.eval()
    with torch.no_grad():
        figures = dict(measure())
    log(**figures)
    print(f"{stage}: {done} steps in {seconds / 60:.1f} minutes, held out {figures}", flush=True)


def cosine(spent: float) -> float:
    """Half a cosine from 1 down to 0.02."""
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * spent))


def autocast() -> torch.autocast:
    """bfloat16 where it is faster; twice as fast on a CPU with AVX-512 BF16."""
    return torch.autocast("cpu", torch.bfloat16)


def normalise(pixels: Tensor) -> Tensor:
    """Pixels 0..255 as floats -1..1."""
    return pixels.float() / 127.5 - 1.0


def random_affine(
    image: Tensor,
    generator: torch.Generator,
    degrees: float = 15.0,
    scale: tuple[float, float] = (0.75, 1.15),
    shift: float = 0.12,
    mirror: bool = True,
) -> Tensor:
    """Turn, scale, stretch, shift and, half of them, mirror every image on its own, on white.

    Args:
        image: ``[B, 3, H, W]`` in -1..1.
        generator: Draws the changes.
        degrees: Largest turn.
        scale: Smallest and largest magnification.
        shift: Largest shift, as a share of the side.
        mirror: Whether to mirror.
    """
    batch = len(image)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    turn = uniform(-degrees, degrees) * math.pi / 180
    size = uniform(math.log(scale[0]), math.log(scale[1])).exp()
    stretch = uniform(-0.12, 0.12).exp()
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if mirror else torch.ones(batch)
    x, y = uniform(-2 * shift, 2 * shift), uniform(-2 * shift, 2 * shift)
    cos, sin = turn.cos() / size, turn.sin() / size
    rows = (
        torch.stack([cos * flip * stretch, sin * stretch, x], 1),
        torch.stack([-sin * flip / stretch, cos / stretch, y], 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), list(image.shape), align_corners=False)
    moved = F.grid_sample(image - 1.0, grid, padding_mode="zeros", align_corners=False)
    return moved + 1.0
