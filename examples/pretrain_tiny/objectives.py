"""What the fusion stage minimises: losses of a model on a batch of pairs.

- instance: a drawing finds the picture of its concept in the batch (InfoNCE), by the embedding;
- pooled: the same by the pooled map, which is all there is without a head;
- query: the same by the mean over a drawing's ink and the most similar places of a picture;
- end_point, contrastive, cells: points of a line drawing find their places in the warped picture;
- scene_bce, scene_dice: a drawing finds the pixels of its concept in a scene of four pictures;
- region: what every pixel of a line drawing would be painted as;
- parts: which part of the drawing's class a point on a stroke is of;
- stroke: which class and part it is of;
- subgroup, sketch: which subgroup of OpenMoji, which class of Quick, Draw!.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from fusion_data import ALIGNED, NO_LABEL, PARTS, SCENES, FusionBatch
from fusion_models import STRIDE, CosineClassifier, GeneralModel
from torch import Tensor, nn
from training import autocast

from sketchfusion_plugins.data.openmoji_parts import CLASSES
from sketchfusion_plugins.features import pooled_descriptor
from sketchfusion_plugins.heads.cells import cell_centres, sample_descriptors
from sketchfusion_plugins.heads.matching import TEMPERATURE
from sketchfusion_plugins.heads.query import QuerySegmentationHead, ink_cells, pool_sketch
from sketchfusion_plugins.losses.contrast import CrossDomainInfoNCE
from sketchfusion_plugins.losses.correspondence import (
    CorrespondenceLoss,
    CorrespondenceLossConfig,
)
from sketchfusion_plugins.losses.query import query_segmentation_loss

WEIGHTS: Mapping[str, float] = {
    "instance": 1.0,
    "pooled": 1.0,
    "query": 0.5,
    "end_point": 1.0,
    "contrastive": 1.0,
    "cells": 1.0,
    "scene_bce": 1.0,
    "scene_dice": 1.0,
    "region": 0.5,
    "parts": 1.0,
    "stroke": 0.3,
    "subgroup": 0.3,
    "sketch": 0.3,
}
SCALE = 1 / 0.07
# Of a picture's cells, those that say whether it holds what is asked for.
TOP_SHARE = 0.1
# How near to a point's place a cell counts, in pixels, on a map of twice the cells.
SPREAD = 3.0


class Objectives(nn.Module):
    """The model with its losses, which have parameters of their own.

    Args:
        model: What is trained.
        strokes: Class of every part that strokes are of, ``[parts]``.
        weights: Of the losses, where they are other than `WEIGHTS`.

    Raises:
        ValueError: There is no such loss.
    """

    class_of_stroke: Tensor

    def __init__(
        self, model: GeneralModel, strokes: Tensor, weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        self.weights = {**WEIGHTS, **(weights or {})}
        if unknown := self.weights.keys() - WEIGHTS.keys():
            raise ValueError(f"no losses {sorted(unknown)}; choose among {', '.join(WEIGHTS)}.")
        self.model = model
        self.instance = CrossDomainInfoNCE()
        self.points = CorrespondenceLoss(
            CorrespondenceLossConfig(end_point=0.2, contrastive=1.0, noise=0.0)
        )
        self.scene = QuerySegmentationHead("ink", scale=SCALE)
        self.regions = nn.Conv2d(model.features.channels, len(CLASSES), 1)
        self.strokes = CosineClassifier(model.features.channels, len(strokes))
        self.register_buffer("class_of_stroke", strokes, persistent=False)

    def forward(self, images: Tensor, batch: FusionBatch) -> dict[str, Tensor]:
        """Losses of a batch, whose drawings and pictures are ``images``; and their sum."""
        with autocast():
            maps = self.model.features(images).float()
            scenes = self.model.features(batch.scenes).float()
        drawing, picture = maps.chunk(2)
        losses = {
            **self._pairs(images.chunk(2)[0], maps, batch),
            **self._matches(drawing, picture, batch),
            **self._scenes(images[:SCENES], drawing, picture, scenes, batch),
            "region": self._regions(drawing[:ALIGNED], batch.aligned.regions),
            **self._strokes(drawing[-PARTS:], picture[-PARTS:], batch),
        }
        total = torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()
        return {"loss": total, **losses}

    def _pairs(self, sketches: Tensor, maps: Tensor, batch: FusionBatch) -> dict[str, Tensor]:
        model = self.model
        drawing, picture = maps.chunk(2)
        embedding = model.head(maps)
        sketch, photo = embedding.chunk(2)
        first, second = pooled_descriptor(maps).chunk(2)
        same = (batch.concept[:, None] == batch.concept).float()
        return {
            "instance": self.instance(sketch, photo, batch.concept),
            "pooled": contrast(SCALE * first @ second.T, same),
            "query": contrast(SCALE * query_scores(sketches, drawing, picture), same),
            # A picture is of its drawing's class.
            "subgroup": F.cross_entropy(
                model.subgroups(embedding), batch.subgroup.repeat(2), ignore_index=NO_LABEL
            ),
            "sketch": F.cross_entropy(
                model.sketches(embedding), batch.sketch_class.repeat(2), ignore_index=NO_LABEL
            ),
        }

    def _matches(self, drawing: Tensor, picture: Tensor, batch: FusionBatch) -> dict[str, Tensor]:
        losses = self.points(
            drawing[:ALIGNED],
            picture[:ALIGNED],
            *batch.aligned.points,
            source_stride=STRIDE,
            target_stride=STRIDE,
            visible=batch.aligned.visible,
        )
        found = {name.removeprefix("loss_"): value for name, value in losses.items()}
        points, visible = batch.aligned.points, batch.aligned.visible
        asked = sample_descriptors(drawing[:ALIGNED], points[0], STRIDE, visible)
        found["cells"] = cell_entropy(asked, picture[:ALIGNED], points[1], visible)
        return found

    def _scenes(
        self,
        sketches: Tensor,
        drawing: Tensor,
        picture: Tensor,
        scenes: Tensor,
        batch: FusionBatch,
    ) -> dict[str, Tensor]:
        ink = ink_cells(sketches, (drawing.shape[2], drawing.shape[3]))
        size = (batch.scenes.shape[2], batch.scenes.shape[3])
        logits = self.scene(
            drawing[:SCENES] - drawing.mean((0, 2, 3), keepdim=True),
            scenes - picture.mean((0, 2, 3), keepdim=True),
            size,
            ink=ink,
        )
        losses = query_segmentation_loss(logits, batch.scene_masks)
        return {name.replace("loss_", "scene_"): value for name, value in losses.items()}

    def _regions(self, drawing: Tensor, regions: Tensor) -> Tensor:
        size = [regions.shape[1], regions.shape[2]]
        logits = F.interpolate(self.regions(drawing), size, mode="bilinear")
        return F.cross_entropy(logits, regions)

    def _strokes(self, first: Tensor, second: Tensor, batch: FusionBatch) -> dict[str, Tensor]:
        descriptors = torch.cat(
            [
                sample_descriptors(maps, points, STRIDE)
                for maps, points in zip((first, second), batch.part_points, strict=True)
            ]
        )
        logits, labels = self.strokes(descriptors), torch.cat(batch.parts)
        other = self.class_of_stroke != self.class_of_stroke[labels][..., None]
        return {
            "parts": F.cross_entropy(logits.masked_fill(other, -torch.inf).mT, labels),
            "stroke": F.cross_entropy(logits.mT, labels),
        }


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


def cell_entropy(asked: Tensor, picture: Tensor, points: Tensor, visible: Tensor) -> Tensor:
    """Cross entropy over a picture's cells, of twice the map's resolution, near points' places.

    Args:
        asked: Unit descriptors of points of the drawings ``[B, N, C]``.
        picture: Maps of the pictures ``[B, C, h, w]``.
        points: Where the points are there, ``[B, N, 2]`` in pixels.
        visible: Which of them there are ``[B, N]``.

    Returns:
        Mean over visible points; what is right falls off as a Gaussian of `SPREAD`.
    """
    enlarged = F.interpolate(picture, scale_factor=2, mode="bilinear")
    places = cell_centres(enlarged, STRIDE / 2)
    distance = (points[:, :, None] - places).square().sum(-1)
    right = (-distance / (2 * SPREAD**2)).softmax(-1)
    logits = asked @ F.normalize(enlarged, dim=1).flatten(2) / TEMPERATURE
    entropy = -(right * logits.log_softmax(-1)).sum(-1)
    return entropy[visible].mean() if visible.any() else entropy.sum() * 0.0
