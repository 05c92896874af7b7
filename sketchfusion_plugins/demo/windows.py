"""Where in a photo something like a sketch is: windows of the photo, described like pictures.

A pooled descriptor of the whole sketch against every cell of the photo's map, as query segmentation
compares them, finds little before its head is trained. Windows keep the layout of what they show,
as whole pictures in a gallery do. They do not depend on the sketch, so a photo is described once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from sketchfusion_plugins.demo.pictures import Box
from sketchfusion_plugins.images import to_tensor
from sketchfusion_plugins.inference.answers import Model, describe

# Sides of windows as shares of the photo's longer side, and the step as a share of the window.
SHARES = (1.0, 0.67, 0.5)
STEP = 0.5
# Windows whose brightest and darkest pixel differ by less, of 2, show nothing.
LEAST_CONTRAST = 0.3
BATCH = 8


@dataclass(frozen=True, eq=False)
class Windows:
    """Squares of a photo with their descriptors.

    Attributes:
        boxes: N squares.
        descriptors: ``[N, D]`` of unit length.
    """

    boxes: tuple[Box, ...]
    descriptors: Tensor

    def best(self, descriptor: Tensor) -> tuple[Box, float]:
        """The square most like a descriptor ``[D]``, and its cosine similarity."""
        score, index = (self.descriptors @ descriptor).max(0)
        return self.boxes[int(index)], float(score)


def describe_windows(model: Model, photo: Image.Image, size: int) -> Windows:
    """Describe a photo's windows.

    Args:
        model: The model.
        photo: The photo, RGB.
        size: Side, in pixels, that windows are resized to.

    Returns:
        Windows that show something; the whole photo alone where none does.
    """
    boxes = list(_boxes(*photo.size))
    images = torch.stack([to_tensor(box.crop(photo), size) for box in boxes])
    shows = images.amax((1, 2, 3)) - images.amin((1, 2, 3)) >= LEAST_CONTRAST
    shows[0] |= not shows.any()
    kept = torch.cat([describe(model, part) for part in images[shows].split(BATCH)])
    return Windows(tuple(box for box, show in zip(boxes, shows, strict=True) if show), kept)


def _boxes(width: int, height: int) -> Iterator[Box]:
    """Squares that cover a photo at every size, the largest first."""
    for share in SHARES:
        side = max(1, round(share * max(width, height)))
        for top in _starts(height, side):
            for left in _starts(width, side):
                yield Box(left, top, side)


def _starts(length: int, side: int) -> list[int]:
    """Edges of windows along an axis, evenly spread; centred where one covers it."""
    if side >= length:
        return [(length - side) // 2]
    count = -(-(length - side) // max(1, round(STEP * side))) + 1
    return [round(number * (length - side) / (count - 1)) for number in range(count)]
