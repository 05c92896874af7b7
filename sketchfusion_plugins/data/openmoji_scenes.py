"""OpenMoji for segmentation by sketch: find the drawn concept among warped coloured pictures.

Everything follows from ``seed`` and the index, as in `sketchfusion_plugins.data.openmoji_pairs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sketchfusion_plugins.data.openmoji_drawings import (
    Drawings,
    checked_repeats,
    item_generator,
    labels_of,
    locate,
    normalise,
)
from sketchfusion_plugins.data.pictures import label_names
from sketchfusion_plugins.data.warps import WarpConfig, random_warp

# Gentler than for matching: a picture should stay in its cell.
SCENE_WARP = WarpConfig(rotation=25, scale=1.2, shift=0.08, bend=0.03)


class OpenMojiScenes(Dataset[dict[str, Any]]):
    """A line drawing, and a scene of warped coloured pictures in which to find its concept.

    Samples: ``sketch`` [3, S, S] and ``photo`` [3, T, T] in -1..1; ``mask`` [T, T], Boolean, the
    pixels of the photo that the sketched concept covers by more than half; ``valid`` [T, T], all
    True; ``label``, the subgroup's index; ``key``, ``"<hexcode>/<repeat>"``.

    A scene is a grid of ``cells`` by ``cells`` concepts of as many families, each as large as its
    sketch, so T is ``cells`` times S, on a plain light background. In ``absent`` of the samples the
    sketched concept is not among them and the mask is empty.

    Args:
        drawings: The concepts, of at least ``cells * cells + 1`` families.
        cells: Side of the grid.
        warp: How far each picture is warped in its cell.
        absent: Share of samples without the sketched concept, 0..1.
        categories: Subgroups in the order of the labels; by default those present, sorted.
        seed: Another seed, other scenes.
        repeats: Times that every concept is searched for, each in its own scene.

    Raises:
        ValueError: An argument is out of range, there are too few families, or a category is
            missing.
    """

    def __init__(
        self,
        drawings: Drawings,
        cells: int = 2,
        warp: WarpConfig | None = None,
        absent: float = 0.0,
        categories: Sequence[str] | None = None,
        seed: int = 0,
        repeats: int = 1,
    ) -> None:
        members: dict[str, list[int]] = {}
        for index, name in enumerate(drawings.family):
            members.setdefault(name, []).append(index)
        if cells < 1 or not 0 <= absent <= 1:
            raise ValueError(
                f"cells must be at least 1 and absent in 0..1, got {cells} and {absent}."
            )
        if len(members) <= cells * cells:
            raise ValueError(
                f"scenes of {cells} x {cells} need drawings of {cells * cells + 1} families, got "
                f"{len(members)}. Load more drawings or lower cells."
            )
        self.drawings, self.cells, self.absent = drawings, cells, absent
        self.warp = warp or SCENE_WARP
        self.members = members
        self.categories = label_names(drawings.categories, categories)
        self.labels = labels_of(drawings.concepts, self.categories)
        self.seed, self.repeats = seed, checked_repeats(repeats)

    def __len__(self) -> int:
        return len(self.drawings) * self.repeats

    def __getitem__(self, index: int) -> dict[str, Any]:
        repeat, item = locate(index, len(self.drawings), self.repeats)
        concept = self.drawings.concepts[item]
        generator = item_generator(self.seed, "scenes", concept, repeat)
        present = float(torch.rand((), generator=generator)) >= self.absent
        shown = self._others(item, self.cells**2 - present, generator) + [item] * present
        order = torch.randperm(len(shown), generator=generator).tolist()
        photo, mask = self._compose([shown[i] for i in order], item, generator)
        return {
            "sketch": normalise(self.drawings.line[item]),
            "photo": photo,
            "mask": mask,
            "valid": torch.ones_like(mask),
            "label": int(self.labels[item]),
            "key": f"{concept.hexcode}/{repeat}",
        }

    def _others(self, item: int, count: int, generator: torch.Generator) -> list[int]:
        """Concepts of other families, each of its own."""
        own = self.drawings.family[item]
        names = [name for name in self.members if name != own]
        others = []
        for number in torch.randperm(len(names), generator=generator)[:count].tolist():
            members = self.members[names[number]]
            others.append(members[int(torch.randint(len(members), (), generator=generator))])
        return others

    def _compose(
        self, shown: Sequence[int], searched: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        side = self.drawings.size
        size = self.cells * side
        background = 0.6 + 0.4 * torch.rand((3, 1, 1), generator=generator)
        photo = background.repeat(1, size, size)
        mask = torch.zeros(size, size, dtype=torch.bool)
        for place, item in enumerate(shown):
            color = torch.from_numpy(self.drawings.color[item]).permute(2, 0, 1) / 255
            coverage = torch.from_numpy(self.drawings.coverage[item])[None] / 255
            # Paint times coverage: only then may pixels be averaged and moved.
            layers = torch.cat([color - (1 - coverage), coverage])
            layers = random_warp(generator, self.warp).image(layers, fill=0.0)
            top, left = (side * number for number in divmod(place, self.cells))
            cell = photo[:, top : top + side, left : left + side]
            cell.copy_(layers[:3] + (1 - layers[3:]) * cell)
            if item == searched:
                mask[top : top + side, left : left + side] = layers[3] > 0.5
        return photo.clamp(0, 1) * 2 - 1, mask
