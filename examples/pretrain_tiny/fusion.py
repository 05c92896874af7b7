"""Stage 6: injection and aggregation, trained for several objectives at once; and the controls.

python examples/pretrain_tiny/fusion.py --work DIR --quickdraw DIR --spg DIR --steps 1500

Drawings enter here, see `fusion_data`. Every model trains with the same losses on the same batches:

- instance: a drawing finds the picture of its concept in the batch (InfoNCE), by the embedding;
- pooled: the same by the pooled map, which is all there is without a head;
- query: the same by the mean over a drawing's ink and the most similar places of a picture;
- end_point, contrastive: points of a line drawing find their places in the warped picture;
- parts: points on a stroke find strokes of the same part in another person's drawing;
- subgroup, sketch: which subgroup of OpenMoji, which class of Quick, Draw!.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from fusion_data import ALIGNED, NO_LABEL, PARTS, FusionBatch, FusionBatches
from fusion_models import (
    FROZEN,
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
from validation import Validation

from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.features import pooled_descriptor
from sketchfusion_plugins.heads.cells import sample_descriptors
from sketchfusion_plugins.heads.query import ink_cells, pool_sketch
from sketchfusion_plugins.losses.contrast import CrossDomainInfoNCE
from sketchfusion_plugins.losses.correspondence import (
    CorrespondenceLoss,
    CorrespondenceLossConfig,
)

WEIGHTS = {
    "instance": 1.0,
    "pooled": 1.0,
    "query": 0.5,
    "loss_end_point": 1.0,
    "loss_contrastive": 1.0,
    "parts": 0.5,
    "subgroup": 0.3,
    "sketch": 0.3,
}
LEARNING_RATE = 2e-3
SCALE = 1 / 0.07
# Of a picture's cells, those that say whether it holds what is asked for.
TOP_SHARE = 0.1


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
        same = (batch.concept[:, None] == batch.concept).float()
        first, second = pooled_descriptor(maps).chunk(2)
        losses: dict[str, Tensor] = {
            "instance": self.instance(sketch, photo, batch.concept),
            "pooled": contrast(SCALE * first @ second.T, same),
            "query": contrast(SCALE * query_scores(images.chunk(2)[0], drawing, picture), same),
        }
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


def query_scores(sketch: Tensor, drawing: Tensor, picture: Tensor) -> Tensor:
    """How much of every drawing is found somewhere in every picture.

    Args:
        sketch: Drawings ``[B, 3, H, W]`` in -1..1.
        drawing: Their maps ``[B, C, h, w]``.
        picture: Maps of pictures ``[B, C, h, w]``.

    Returns:
        ``[B, B]``: of the drawing's mean over its ink, the mean cosine with the most similar
        `TOP_SHARE` of a picture's cells; the batch's mean is taken off both maps.
    """
    ink = ink_cells(sketch, (drawing.shape[2], drawing.shape[3]))
    asked = pool_sketch(drawing - drawing.mean((0, 2, 3), keepdim=True), ink)
    cells = F.normalize(picture - picture.mean((0, 2, 3), keepdim=True), dim=1).flatten(2)
    cosine = torch.einsum("ac,bcn->abn", asked, cells)
    return cosine.topk(int(TOP_SHARE * cells.shape[2])).values.mean(2)


def contrast(logits: Tensor, same: Tensor) -> Tensor:
    """InfoNCE both ways with several positives.

    Args:
        logits: Scaled similarities ``[..., N, M]``.
        same: 1 where a pair belongs together, else 0, ``[..., N, M]``.

    Returns:
        Mean, over rows and columns that have a positive, of the cross entropy with equal weight on
        all of them.
    """
    total = logits.new_zeros(())
    for values, positives in ((logits, same), (logits.mT, same.mT)):
        counts = positives.sum(-1)
        entropy = -(values.log_softmax(-1) * positives).sum(-1) / counts.clamp(min=1)
        total = total + entropy.sum() / (counts > 0).sum().clamp(min=1)
    return total / 2


def part_contrast(
    maps: tuple[Tensor, Tensor],
    points: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    scale: float = SCALE,
) -> Tensor:
    """`contrast` of points in two drawings, which belong together where they are of one part.

    Args:
        maps: ``[B, C, h, w]`` of either drawing.
        points: ``[B, N, 2]`` in pixels.
        labels: Parts ``[B, N]``.
        scale: Inverse temperature.
    """
    first, second = (
        sample_descriptors(features, xy, STRIDE) for features, xy in zip(maps, points, strict=True)
    )
    same = (labels[0][:, :, None] == labels[1][:, None, :]).float()
    return contrast(scale * first @ second.transpose(1, 2), same)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the earlier stages")
    parser.add_argument("--quickdraw", type=Path, required=True, help="Quick, Draw! drawings")
    parser.add_argument("--spg", type=Path, required=True, help="SPG drawings")
    parser.add_argument("--foundations", type=Path, help="what export.py wrote; WORK/export")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["fused"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--changes", type=json.loads, default={}, help='{"injection__init": ...}')
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--fixed-noise", action="store_true", help="the same noise at every step")
    parser.add_argument("--name", default="", help="added to the names of the results")
    parser.add_argument(
        "--validate", action="store_true", help="leave concepts out, measure on them"
    )
    options = parser.parse_args(arguments)
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
            GeneralModel(build(kind, frozen, options.work, **loading), **counts)
        )

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
    train(
        "-".join(filter(None, ["fusion/seed", str(options.seed), options.name, *options.kinds])),
        options.work,
        models,
        step,
        measure,
        Budget(steps=options.steps),
        options.learning_rate,
        weight_decay=1e-2,
        ema_decay=0.998,
        frozen=FROZEN,
    )
    for kind, objectives in models.items():
        about = {
            "kind": kind,
            "seed": options.seed,
            "steps": options.steps,
            "changes": options.changes,
            "foundations": str(loading["foundations"]),
            "work": str(options.work),
            **counts,
        }
        name = "-".join(filter(None, [kind, options.name, str(options.seed)]))
        save(objectives.model.eval(), folder / name, about)


if __name__ == "__main__":
    main()
