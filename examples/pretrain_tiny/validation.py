"""What choices in the fusion stage rest on: seen concepts that ``fusion.py --validate`` leaves out.

Held-out concepts choose nothing. The foundations have seen these concepts' coloured pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import load_pictures
from fusion_models import GeneralModel
from scenes import best_quadrants, drawings_by
from torch import Tensor
from torch.utils.data import default_collate
from training import autocast
from training import normalise as to_floats

from sketchfusion_plugins.data.openmoji import held_out_concepts
from sketchfusion_plugins.data.openmoji_drawings import (
    Drawings,
    item_generator,
    load_drawings,
    normalise,
)
from sketchfusion_plugins.data.openmoji_pairs import OpenMojiCorrespondence
from sketchfusion_plugins.data.openmoji_scenes import OpenMojiScenes
from sketchfusion_plugins.data.openmoji_tasks import AUGMENTATION
from sketchfusion_plugins.data.warps import WarpConfig, random_warp
from sketchfusion_plugins.features import pooled_descriptor
from sketchfusion_plugins.heads.matching import match_points
from sketchfusion_plugins.heads.query import ink_cells, pool_sketch
from sketchfusion_plugins.metrics.correspondence import Protocol, key_point_scores

SIZE, LARGE, BATCH = 128, 192, 32
ONE_OF = 6
RADIUS = 7
PCK = Protocol("validation", SIZE, inclusive=True, alphas=(5, 10))


class Validation:
    """Retrieval, correspondence and search on one concept of every family that is left out.

    Args:
        work: Folder that `data.py` filled.

    Attributes:
        left_out: Families that training must leave out.
    """

    def __init__(self, work: Path) -> None:
        drawings = load_drawings(SIZE)
        held = held_out_concepts()
        pictures = load_pictures(work)[0]
        noto = {r.concept: i for i, r in enumerate(pictures.rows) if r.source == "noto"}
        first: dict[str, int] = {}
        for index, (concept, family) in enumerate(
            zip(drawings.concepts, drawings.family, strict=True)
        ):
            if concept.hexcode not in held and concept.hexcode in noto:
                first.setdefault(family, index)
        families = sorted(first)
        order = np.random.default_rng(0).permutation(len(families))
        self.left_out = frozenset(families[i] for i in order[: len(families) // ONE_OF])
        own = drawings.subset([first[name] for name in sorted(self.left_out)])
        self.drawings = torch.stack([_warped(own, index) for index in range(len(own))])
        drawn = pictures.pixels[[noto[concept.hexcode] for concept in own.concepts]]
        shown = to_floats(drawn)
        tints = 0.6 + 0.4 * torch.rand(
            (len(own), 3, 1, 1), generator=torch.Generator().manual_seed(0)
        )
        self.galleries = {"": shown, "tinted_": (shown + 1) * tints - 1}
        scenes = OpenMojiScenes(drawings_by(own, drawn, torch.arange(len(own))))
        items = [scenes[index] for index in range(len(own))]
        self.scenes = torch.stack([item["photo"] for item in items])
        self.masks = torch.stack([item["mask"] for item in items])
        self.pairs = OpenMojiCorrespondence(own, 8, WarpConfig(), seed=2)

    def __call__(self, model: GeneralModel) -> Mapping[str, float]:
        """Acc@5 of embeddings and pooled maps, also of pictures on tints; PCK; share localised."""
        asked = _encode(model, self.drawings)
        figures = {}
        for name, pictures in self.galleries.items():
            found = _encode(model, pictures)
            for kind in asked:
                queries, gallery = (side[kind] - side[kind].mean(0) for side in (asked, found))
                similarity = F.normalize(queries, dim=1) @ (F.normalize(gallery, dim=1).T)
                truth = torch.arange(len(queries))[:, None]
                right = (similarity.topk(5).indices == truth).any(1)
                figures[f"{name}{kind}_acc5"] = round(float(right.float().mean()), 4)
        for size in (SIZE, LARGE):
            figures |= self._correspondence(model, size)
        return {**figures, **self._localisation(model)}

    def _localisation(self, model: GeneralModel) -> dict[str, float]:
        """In which quadrant of a scene a drawing is found."""
        with autocast():
            drawing, scene = (
                torch.cat([model.features(part).float() for part in side.split(BATCH // 4)])
                for side in (self.drawings, self.scenes)
            )
        ink = ink_cells(self.drawings, (drawing.shape[2], drawing.shape[3]))
        asked = pool_sketch(drawing - drawing.mean((0, 2, 3), keepdim=True), ink)
        cells = F.normalize(scene - scene.mean((0, 2, 3), keepdim=True), dim=1)
        similarity = torch.einsum("bc,bchw->bhw", asked, cells)
        covered = self.masks.float()[:, None]
        truth = F.adaptive_avg_pool2d(covered, 2).flatten(1).argmax(1)
        right = best_quadrants(similarity) == truth
        return {"localised": round(float(right.float().mean()), 4)}

    def _correspondence(self, model: GeneralModel, size: int) -> dict[str, float]:
        """PCK of the same pairs enlarged to a size, at which the noise is another."""
        scores = []
        for start in range(0, len(self.pairs), BATCH):
            numbers = range(start, min(start + BATCH, len(self.pairs)))
            batch = default_collate([self.pairs[number] for number in numbers])
            images = (F.interpolate(batch[n], size, mode="bilinear") for n in ("source", "target"))
            with autocast():
                maps = [model.features(image).float() for image in images]
            source, target = (side - side.mean((0, 2, 3), keepdim=True) for side in maps)
            strides = [SIZE / side.shape[-1] for side in maps]
            visible = batch["visible"]
            found = match_points(
                source,
                target,
                batch["source_points"],
                source_stride=strides[0],
                target_stride=strides[1],
                visible=visible,
                radius=RADIUS,
            )
            scores.append(
                key_point_scores(found, batch["target_points"], (SIZE, SIZE), PCK, visible).items
            )
        means = torch.cat(scores).nanmean(0).tolist()
        return {
            f"pck{alpha:g}_{size}": round(mean, 4)
            for alpha, mean in zip(PCK.alphas, means, strict=True)
        }


def _encode(model: GeneralModel, images: Tensor) -> dict[str, Tensor]:
    embeddings, descriptors = [], []
    for part in images.split(BATCH):
        with autocast():
            maps = model.features(part).float()
        embeddings.append(model.head(maps))
        descriptors.append(pooled_descriptor(maps))
    return {"embedded": torch.cat(embeddings), "pooled": torch.cat(descriptors)}


def _warped(drawings: Drawings, index: int) -> Tensor:
    generator = item_generator(0, "validation", drawings.concepts[index], 0)
    return random_warp(generator, AUGMENTATION).image(normalise(drawings.line[index]))
