"""Stage 6: injection and aggregation, trained for several objectives at once; and the controls.

python examples/pretrain_tiny/fusion.py --work DIR --quickdraw DIR --spg DIR --steps 1500

Drawings enter here, see `fusion_data`; what is minimised is in `objectives`. Every model trains
with the same losses on the same batches.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from foundations import load_foundations
from fusion_data import FusionBatches
from fusion_models import (
    FROZEN,
    KINDS,
    FrozenMaps,
    GeneralModel,
    begin_from,
    build,
    save,
)
from objectives import Objectives
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from training import Budget, train
from validation import Validation

from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.stroke_metrics import categories_of

LEARNING_RATE = 2e-3


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the earlier stages")
    parser.add_argument("--quickdraw", type=Path, required=True, help="Quick, Draw! drawings")
    parser.add_argument("--spg", type=Path, required=True, help="SPG drawings")
    parser.add_argument("--foundations", type=Path, help="what export.py wrote; WORK/export")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["fused"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--begin", help="a fused retrieval checkpoint that training goes on from")
    parser.add_argument("--changes", type=json.loads, default={}, help='{"injection__init": ...}')
    parser.add_argument("--weights", type=json.loads, default={}, help='{"region": 0}')
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--fixed-noise", action="store_true", help="the same noise at every step")
    parser.add_argument("--name", default="", help="added to the names of the results")
    parser.add_argument(
        "--validate", action="store_true", help="leave concepts out, measure on them"
    )
    options = parser.parse_args(arguments)
    if options.begin is not None and options.kinds != ["fused"]:
        parser.error(f"--begin is for --kinds fused alone, got {' '.join(options.kinds)}.")
    settings = {
        name: getattr(options, name)
        for name in ("begin", "changes", "weights", "learning_rate", "fixed_noise", "validate")
    }
    if not options.name and any(settings[name] != parser.get_default(name) for name in settings):
        parser.error(
            f"--{', --'.join(settings).replace('_', '-')} need a --name: their result is no row to "
            "hold beside the others."
        )
    loading = {
        "foundations": options.foundations or options.work / "export",
        "changes": options.changes,
    }
    validation = Validation(options.work) if options.validate else None
    left_out = validation.left_out if validation is not None else ()
    batches = FusionBatches(options.work, options.quickdraw, options.spg, left_out)
    counts = {"subgroups": len(batches.subgroups), "sketches": len(batches.classes)}
    frozen = FrozenMaps(load_foundations(**loading))
    models = {}
    for kind in options.kinds:
        # A kind begins the same, whatever trains beside it.
        torch.manual_seed(options.seed)
        models[kind] = Objectives(
            GeneralModel(build(kind, frozen, options.work, seed=options.seed, **loading), **counts),
            categories_of(batches.strokes),
            options.weights,
        )
        if options.begin is not None:
            begin_from(models[kind].model, options.begin)

    def step(generator: torch.Generator, _: float) -> Mapping[str, Tensor]:
        # Another seed, other batches: its steps are counted from another number.
        generator.manual_seed(generator.initial_seed() + 1_000_003 * (options.seed + 1))
        batch = batches(generator)
        images = torch.cat([batch.drawing, batch.picture])
        if not options.fixed_noise:
            seed_noise(int(torch.randint(2**31, (), generator=generator)))
        losses = {kind: model(images, batch) for kind, model in models.items()}
        parts = {
            f"{kind} {name}": value
            for kind, values in losses.items()
            for name, value in values.items()
        }
        return {"loss": torch.stack([v["loss"] for v in losses.values()]).sum(), **parts}

    def seed_noise(seed: int) -> None:
        for part in (frozen, *models.values()):
            for encoder in part.modules():
                if isinstance(encoder, SketchFusionEncoder):
                    branch = encoder.diffusion
                    branch.config = replace(branch.config, seed=seed)

    def measure() -> Mapping[str, float]:
        seed_noise(0)
        if validation is None:
            return {}
        return {
            f"{kind} {name}": value
            for kind, objectives in models.items()
            for name, value in validation(objectives.model).items()
        }

    folder = options.work / "fusion"
    folder.mkdir(parents=True, exist_ok=True)
    stage = ["fusion/seed", str(options.seed), options.name, *options.kinds]
    # A CPU's fused attention is slow backwards.
    with sdpa_kernel(SDPBackend.MATH):
        train(
            "-".join(filter(None, stage)),
            options.work,
            models,
            step,
            measure,
            Budget(steps=options.steps),
            options.learning_rate,
            weight_decay=1e-2,
            ema_decay=0.998,
            frozen=FROZEN,
            about=settings,
        )
    for kind, objectives in models.items():
        about = {
            "kind": kind,
            "seed": options.seed,
            "steps": options.steps,
            **settings,
            "foundations": str(loading["foundations"]),
            "work": str(options.work),
            **counts,
        }
        name = "-".join(filter(None, [kind, options.name, str(options.seed)]))
        save(objectives.model.eval(), folder / name, about)


if __name__ == "__main__":
    main()
