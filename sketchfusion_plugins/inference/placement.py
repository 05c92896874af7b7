"""Where an image lies in the square that it is padded to, and the way back to its own pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Placement:
    """The box that an image fills in its square, as `images.to_tensor` pads.

    Points are ``(x, y)`` in pixels, the centre of the first pixel being (0.5, 0.5).

    Attributes:
        width: Width of the image itself, in pixels.
        height: Its height.
        side: Side of the square, in pixels.
    """

    width: int
    height: int
    side: int

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.side) < 1:
            raise ValueError(
                f"expected an image and a square of at least 1 px, got {self.width} x "
                f"{self.height} px in {self.side} px."
            )
        if min(self.filled) < 1:
            raise ValueError(
                f"an image of {self.width} x {self.height} px vanishes in a square of "
                f"{self.side} px. Choose a larger size, or crop the image."
            )

    @property
    def filled(self) -> tuple[int, int]:
        """Width and height of the box in the square, in whole pixels as Pillow rounds them."""
        if self.width > self.height:
            return self.side, round(self.height / self.width * self.side)
        if self.width < self.height:
            return round(self.width / self.height * self.side), self.side
        return self.side, self.side

    @property
    def corner(self) -> tuple[int, int]:
        """The box's upper left corner ``(x, y)`` in the square, in whole pixels."""
        width, height = self.filled
        return round((self.side - width) * 0.5), round((self.side - height) * 0.5)

    def to_square(self, points: Tensor) -> Tensor:
        """Points ``[..., 2]`` of the image as points of the square."""
        return points * self._scale(points) + points.new_tensor(self.corner)

    def to_image(self, points: Tensor) -> Tensor:
        """Points ``[..., 2]`` of the square as points of the image.

        Those in the padding are moved to the nearest edge of the image.
        """
        found = (points - points.new_tensor(self.corner)) / self._scale(points)
        return found.clamp(min=0).minimum(found.new_tensor([self.width, self.height]))

    def inside(self, points: Tensor) -> Tensor:
        """Whether points ``[..., 2]`` of the square lie on the image, bool ``[...]``."""
        relative = points - points.new_tensor(self.corner)
        return ((relative >= 0) & (relative <= relative.new_tensor(self.filled))).all(-1)

    def crop(self, values: Tensor) -> Tensor:
        """Values ``[..., side, side]`` of the square's pixels, without the padding."""
        (x, y), (width, height) = self.corner, self.filled
        return values[..., y : y + height, x : x + width]

    def enlarge(self, values: Tensor) -> Tensor:
        """Values ``[side, side]`` of the square's pixels at the image's, ``[height, width]``."""
        size = (self.height, self.width)
        return F.interpolate(self.crop(values)[None, None], size, mode="bilinear")[0, 0]

    def _scale(self, points: Tensor) -> Tensor:
        width, height = self.filled
        return torch.tensor(
            [width / self.width, height / self.height], dtype=points.dtype, device=points.device
        )
