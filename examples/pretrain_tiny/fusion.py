"""Stage 6: injection and aggregation, trained for several objectives at once; and the controls.

python examples/pretrain_tiny/fusion.py --work DIR --quickdraw DIR --spg DIR --steps 1500

Drawings enter here, see `fusion_data`. Every model trains with the same losses on the same batches:

- instance: a drawing finds the picture of its concept in the batch (InfoNCE);
- end_point, contrastive: points of a line drawing find their places in the warped picture;
- parts: points on a stroke find strokes of the same part in another person's drawing;
- subgroup, sketch: which subgroup of OpenMoji, which class of Quick, Draw!.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from fusion_data import ALIGNED, NO_LABEL, PARTS, FusionBatch, FusionBatches
from fusion_models import (
    KINDS,
    STRIDE,
    FrozenMaps,
    GeneralModel,
    build,
    load_foundations,
    save,
)
from torch import Tensor, nn
from training import Budget, autocast, train

from sketchfusion_plugins.heads.cells import sample_descriptors
from sketchfusion_plugins.losses.contrast import CrossDomainInfoNCE
from sketchfusion_plugins.losses.correspondence import (
    CorrespondenceLoss,
    CorrespondenceLossConfig,
)

WEIGHTS = {
    "instance": 1.0,
    "loss_end_point": 1.0,
    "loss_contrastive": 1.0,
    "parts": 0.5,
    "subgroup": 0.3,
    "sketch": 0.3,
}
LEARNING_RATE = 2e-3


class Objectives(nn.Module):
    """The model with its losses, which have parameters of their own."""

    def __init__(self, model: GeneralModel) -> None:
        super().__init__()
        self.model = model
        self.instance = CrossDomainInfoNCE()
        self.points = CorrespondenceLoss(
            CorrespondenceLossConfig(end_point=0.2, contrastive=1.0, noise=0.0)
        )

    def forward(self, images: Tensor, batch: FusionBatch) -> dict[str, Tensor]:
        """Losses of a batch, whose drawings and pictures are ``images``; and their sum."""
        model = self.model
        with autocast():
            maps = model.features(images).float()
        drawing, picture = maps.chunk(2)
        embedding = model.head(maps)
        sketch, photo = embedding.chunk(2)
        losses: dict[str, Tensor] = {"instance": self.instance(sketch, photo, batch.concept)}
        losses |= self.points(
            drawing[:ALIGNED],
            picture[:ALIGNED],
            *batch.points,
            source_stride=STRIDE,
            target_stride=STRIDE,
            visible=batch.visible,
        )
        losses["parts"] = part_contrast(
            (drawing[-PARTS:], picture[-PARTS:]), batch.part_points, batch.parts
        )
        for name, head, labels in (
            ("subgroup", model.subgroups, batch.subgroup),
            ("sketch", model.sketches, batch.sketch_class),
        ):
            # A picture is of its drawing's class.
            losses[name] = cross_entropy(head(embedding), labels.repeat(2))
        total = torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum()
        return {"loss": total, **losses}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the rows that have a label."""
    known = labels != NO_LABEL
    return F.cross_entropy(logits[known], labels[known])


def part_contrast(
    maps: tuple[Tensor, Tensor],
    points: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    scale: float = 1 / 0.07,
) -> Tensor:
    """Points of the same part in two drawings are each other's positives.

    Args:
        maps: ``[B, C, h, w]`` of either drawing.
        points: ``[B, N, 2]`` in pixels.
        labels: Parts ``[B, N]``.
        scale: Inverse temperature.

    Returns:
        Mean, over points whose part the other drawing has, of the cross entropy with equal weight
        on all points of that part.
    """
    first, second = (
        sample_descriptors(features, xy, STRIDE) for features, xy in zip(maps, points, strict=True)
    )
    same = (labels[0][:, :, None] == labels[1][:, None, :]).float()
    logits = scale * first @ second.transpose(1, 2)
    total = first.new_zeros(())
    for values, positives in ((logits, same), (logits.mT, same.mT)):
        counts = positives.sum(2)
        entropy = -(values.log_softmax(2) * positives).sum(2) / counts.clamp(min=1)
        total = total + entropy.sum() / (counts > 0).sum().clamp(min=1)
    return total / 2


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the earlier stages")
    parser.add_argument("--quickdraw", type=Path, required=True, help="Quick, Draw! drawings")
    parser.add_argument("--spg", type=Path, required=True, help="SPG drawings")
    parser.add_argument("--foundations", type=Path, help="what export.py wrote; WORK/export")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["fused"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--timestep", type=int, help="noise level; the preset's by default")
    parser.add_argument("--name", default="", help="added to the names of the results")
    options = parser.parse_args(arguments)
    loading = {
        "foundations": options.foundations or options.work / "export",
        "timestep": options.timestep,
    }
    batches = FusionBatches(options.work, options.quickdraw, options.spg)
    counts = {"subgroups": len(batches.subgroups), "sketches": len(batches.classes)}
    frozen = FrozenMaps(load_foundations(**loading))
    models = {}
    for kind in options.kinds:
        # A kind begins the same, whatever trains beside it.
        torch.manual_seed(options.seed)
        models[kind] = Objectives(
            GeneralModel(build(kind, frozen, options.work, **loading), **counts)
        )

    def step(generator: torch.Generator, _: float) -> Mapping[str, Tensor]:
        # Another seed, other batches: its steps are counted from another number.
        generator.manual_seed(generator.initial_seed() + 1_000_003 * (options.seed + 1))
        batch = batches(generator)
        images = torch.cat([batch.drawing, batch.picture])
        losses = {kind: model(images, batch) for kind, model in models.items()}
        parts = {
            f"{kind} {name}": value
            for kind, values in losses.items()
            for name, value in values.items()
        }
        return {"loss": torch.stack([v["loss"] for v in losses.values()]).sum(), **parts}

    folder = options.work / "fusion"
    folder.mkdir(parents=True, exist_ok=True)
    train(
        "-".join(filter(None, ["fusion/seed", str(options.seed), options.name, *options.kinds])),
        options.work,
        models,
        step,
        dict,
        Budget(steps=options.steps),
        LEARNING_RATE,
        weight_decay=1e-2,
        ema_decay=0.998,
    )
    for kind, objectives in models.items():
        about = {
            "kind": kind,
            "seed": options.seed,
            "steps": options.steps,
            "timestep": options.timestep,
            "foundations": str(loading["foundations"]),
            "work": str(options.work),
            **counts,
        }
        name = "-".join(filter(None, [kind, options.name, str(options.seed)]))
        save(objectives.model.eval(), folder / name, about)


if __name__ == "__main__":
    main()
