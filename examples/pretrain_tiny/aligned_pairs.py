"""Line drawings with their own coloured pictures: points that match, and what lines enclose."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sources import SIZE
from torch import Tensor

from sketchfusion_plugins.data.openmoji_drawings import Drawings, normalise
from sketchfusion_plugins.data.openmoji_pairs import spread_points
from sketchfusion_plugins.data.openmoji_parts import part_mask
from sketchfusion_plugins.data.warps import WarpConfig, random_warp

POINTS = 24
SKETCH_WARP = WarpConfig(rotation=15, scale=1.2, shift=0.06, bend=0.03)


class Aligned(NamedTuple):
    """B drawings and pictures, each warped on its own.

    Attributes:
        images: Drawings and pictures, ``[B, 3, S, S]`` in -1..1.
        points: Points in drawings and in pictures, ``[B, POINTS, 2]`` in pixels.
        visible: Which of them both show ``[B, POINTS]``.
        regions: What lies at every pixel of the drawings, indices into
            `sketchfusion_plugins.data.openmoji_parts.CLASSES`, ``[B, S, S]``.
    """

    images: tuple[Tensor, Tensor]
    points: tuple[Tensor, Tensor]
    visible: Tensor
    regions: Tensor


class AlignedPairs:
    """Warps drawings of OpenMoji and their pictures.

    Args:
        drawings: The concepts.
    """

    def __init__(self, drawings: Drawings) -> None:
        self.drawings = drawings
        self._masks: dict[int, Tensor] = {}

    def __call__(
        self,
        chosen: NDArray[np.int64],
        lines: Tensor,
        generator: torch.Generator,
        draw: np.random.Generator,
    ) -> Aligned:
        """Warp line drawings ``lines`` ``[B, 3, S, S]`` of the concepts ``chosen``."""
        images: tuple[list[Tensor], list[Tensor]] = ([], [])
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        seen, regions = [], []
        for line, index in zip(lines, chosen.tolist(), strict=True):
            own, visible = spread_points(self.drawings.line[index], POINTS, generator)
            colour = normalise(self.drawings.color[index])
            pair = (line, SKETCH_WARP), (colour, WarpConfig())
            for side, (image, config) in enumerate(pair):
                warp = random_warp(generator, config)
                moved, shown = warp.points(own, SIZE, SIZE)
                images[side].append(warp.image(image))
                found[side].append(moved)
                visible = visible & shown
                if side == 0:
                    regions.append(warp.mask(self._mask(index)))
            if draw.random() < 0.5:
                regions[-1] = regions[-1].flip(-1)
                for side in (0, 1):
                    images[side][-1] = images[side][-1].flip(-1)
                    found[side][-1] = found[side][-1] * torch.tensor([-1.0, 1.0]) + torch.tensor(
                        [float(SIZE), 0.0]
                    )
            seen.append(visible)
        return Aligned(
            (torch.stack(images[0]), torch.stack(images[1])),
            (torch.stack(found[0]), torch.stack(found[1])),
            torch.stack(seen),
            torch.stack(regions),
        )

    def _mask(self, index: int) -> Tensor:
        if index not in self._masks:
            svg = self.drawings.concepts[index].svg.read_bytes()
            self._masks[index] = torch.from_numpy(part_mask(svg, SIZE)).long()
        return self._masks[index]
