"""Smooth random warps of a picture, its points and its mask, all by one map.

A line drawing and its coloured picture are often aligned pixel for pixel, which makes matching them
trivial. A warp takes that away and keeps the truth known. It turns, scales, shifts and bends:

    source = R (target - shift) + bend(target)

in units of the longer side, from the picture's centre. Bending is a sum of slow waves whose slope
is bounded, so the map never folds and points can be carried the other way by fixed-point iteration,
to any precision. (Thin-plate splines fitted in both directions are no exact inverses.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

WAVES = 3
STEEPEST = 0.9
# In longer sides: far below a thousandth of a pixel. Every step shrinks the error by the slope.
PRECISION = 1e-9
STEPS = 200


@dataclass(frozen=True)
class WarpConfig:
    """How far warps go. Every value is drawn uniformly up to its limit, in both directions.

    Attributes:
        rotation: Degrees, 0..180.
        scale: Largest factor of enlarging and, inverted, of shrinking; at least 1.
        shift: Share of the longer side, 0..1, in x and in y.
        bend: Largest displacement by bending, as a share of the longer side.
        cycles: Fastest bending wave, in cycles per longer side.

    Raises:
        ValueError: A value is out of range, or the picture could fold.
    """

    rotation: float = 30.0
    scale: float = 1.25
    shift: float = 0.1
    bend: float = 0.04
    cycles: float = 1.2

    def __post_init__(self) -> None:
        if not (
            0 <= self.rotation <= 180
            and 1 <= self.scale < math.inf
            and 0 <= self.shift <= 1
            and self.bend >= 0
            and self.cycles > 0
        ):
            raise ValueError(
                "expected rotation in 0..180, scale of at least 1, shift in 0..1, bend of at least "
                f"0 and cycles above 0, got {self}."
            )
        if not self.slope <= STEEPEST:
            raise ValueError(
                f"a warp of {self} could fold the picture: 2 pi x bend x cycles x scale is "
                f"{self.slope:.3g}, it must be at most {STEEPEST}. Lower one of the three."
            )

    @property
    def slope(self) -> float:
        """Bound on how fast the bend changes along the target, seen from the source."""
        return 2 * math.pi * self.bend * self.cycles * self.scale


# How far a drawing may be turned and bent and still be the same drawing.
AUGMENTATION = WarpConfig(rotation=15, scale=1.15, shift=0.06, bend=0.02)


@dataclass(frozen=True, eq=False)
class Warp:
    """One warp, for pictures of any size; see the module for the map.

    Attributes:
        matrix: ``[2, 2]``, target to source.
        shift: ``[2]``, in longer sides.
        directions: ``[W, 2]``, the waves' vectors in radians per longer side.
        phases: ``[W]``, radians.
        amplitudes: ``[W, 2]``, displacements in longer sides.
    """

    matrix: Tensor
    shift: Tensor
    directions: Tensor
    phases: Tensor
    amplitudes: Tensor

    def image(
        self, image: Tensor, fill: float = 1.0, mode: Literal["bilinear", "nearest"] = "bilinear"
    ) -> Tensor:
        """Warp a picture.

        Args:
            image: ``[C, H, W]`` or ``[B, C, H, W]``, floating point.
            fill: Value of what comes from outside; 1 is white.
            mode: ``"nearest"`` for class indices.

        Returns:
            Of the same shape and type.
        """
        batch = image if image.ndim == 4 else image[None]
        height, width = batch.shape[-2:]
        centres = [torch.arange(n, dtype=torch.float64) + 0.5 for n in (width, height)]
        target = torch.stack(torch.meshgrid(*centres, indexing="xy"), -1)
        frame = _Frame(height, width)
        source = frame.pixels(self._back(frame.units(target)))
        grid = source / torch.tensor([width, height]) * 2 - 1
        # Places in half precision would be off by a pixel.
        precise = batch.to(torch.promote_types(batch.dtype, torch.float32))
        grid = grid.to(precise).expand(len(batch), -1, -1, -1)
        # Outside, grid_sample knows zero only.
        warped = F.grid_sample(precise - fill, grid, mode, align_corners=False) + fill
        warped = warped.to(batch.dtype)
        return warped if image.ndim == 4 else warped[0]

    def mask(self, mask: Tensor, outside: int = 0) -> Tensor:
        """Warp class indices or a Boolean mask.

        Args:
            mask: ``[..., H, W]``, Boolean or integers below 2^24.
            outside: Value of what comes from outside.

        Returns:
            Of the same shape and type.
        """
        planes = mask.reshape(1, -1, *mask.shape[-2:]).to(torch.float32)
        return self.image(planes, float(outside), "nearest").reshape(mask.shape).to(mask.dtype)

    def points(self, xy: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Carry points of the picture along.

        Args:
            xy: ``[..., 2]``, pixels; the pixel in row y, column x covers x..x+1, y..y+1.
            height: Of the picture.
            width: Of the picture.

        Returns:
            Points ``[..., 2]``, where they are after the warp, of ``xy``'s type (of whole numbers,
            torch's default one); and ``[...]``, Boolean: whether a point lies inside the picture
            both before and after.
        """
        frame = _Frame(height, width)
        source = frame.units(xy.to(torch.float64))
        inverse = torch.linalg.inv(self.matrix)
        target = source
        for _ in range(STEPS):
            before = target
            target = (source - self._bend(before)) @ inverse.T + self.shift
            if not ((target - before).abs() > PRECISION).any():
                break
        kind = xy.dtype if xy.is_floating_point() else torch.get_default_dtype()
        moved = frame.pixels(target).to(xy.device, kind)
        return moved, inside(xy, height, width) & inside(moved, height, width)

    def _back(self, target: Tensor) -> Tensor:
        return (target - self.shift) @ self.matrix.T + self._bend(target)

    def _bend(self, target: Tensor) -> Tensor:
        return torch.sin(target @ self.directions.T + self.phases) @ self.amplitudes


def random_warp(generator: torch.Generator, config: WarpConfig | None = None) -> Warp:
    """Draw a warp.

    Args:
        generator: CPU generator; the same state gives the same warp.
        config: How far it may go.
    """
    config = config or WarpConfig()

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1

    angle = math.radians(config.rotation) * uniform(1)[0]
    factor = config.scale ** uniform(1)[0]
    cosine, sine = torch.cos(angle), torch.sin(angle)
    # From target to source, hence turned back and divided.
    matrix = torch.stack([cosine, sine, -sine, cosine]).reshape(2, 2) / factor
    shift = config.shift * uniform(2)
    heading = math.pi * uniform(WAVES)
    speed = 2 * math.pi * config.cycles * (0.7 + 0.3 * uniform(WAVES))
    directions = speed[:, None] * torch.stack([torch.cos(heading), torch.sin(heading)], -1)
    push = math.pi * uniform(WAVES)
    amplitudes = config.bend / WAVES * torch.stack([torch.cos(push), torch.sin(push)], -1)
    return Warp(matrix, shift, directions, math.pi * uniform(WAVES), amplitudes)


def inside(xy: Tensor, height: int, width: int) -> Tensor:
    """Whether points lie on a picture.

    Args:
        xy: ``[..., 2]``, pixels.
        height: Of the picture.
        width: Of the picture.

    Returns:
        ``[...]``, Boolean.
    """
    x, y = xy.unbind(-1)
    return (x >= 0) & (x < width) & (y >= 0) & (y < height)


@dataclass(frozen=True)
class _Frame:
    """Pixels of a picture to longer sides from its centre, and back."""

    height: int
    width: int

    def units(self, xy: Tensor) -> Tensor:
        return (xy - self._centre()) / max(self.height, self.width)

    def pixels(self, units: Tensor) -> Tensor:
        return units * max(self.height, self.width) + self._centre()

    def _centre(self) -> Tensor:
        return torch.tensor([self.width / 2, self.height / 2], dtype=torch.float64)
