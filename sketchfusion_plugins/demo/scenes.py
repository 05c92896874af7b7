"""A photo and drawings for who has none at hand, made from OpenMoji.

Of held-out concepts: the foundations of ``sketchfusion_tiny`` never saw them.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from sketchfusion_plugins.data.openmoji import Concept, load_concepts
from sketchfusion_plugins.data.openmoji_drawings import normalise
from sketchfusion_plugins.data.warps import WarpConfig, random_warp
from sketchfusion_plugins.demo.gallery import draw_concept
from sketchfusion_plugins.demo.pictures import CANVAS

# Cat face, fish, mushroom, butterfly.
SCENE = ("1F431", "1F41F", "1F344", "1F98B")
CELL = 192
BORDER = 12
# Without a warp, a drawing and its picture would be aligned pixel for pixel.
WARP = WarpConfig(rotation=15, scale=1.05, shift=0.02, bend=0.02)


def scene_concepts() -> list[Concept]:
    """The four concepts of the example scene.

    Raises:
        ModuleNotFoundError: A package of the ``demo`` extra is missing.
    """
    known = {concept.hexcode: concept for concept in load_concepts()}
    return [known[hexcode] for hexcode in SCENE]


def example_photo(concepts: list[Concept], seed: int = 0) -> Image.Image:
    """Warped coloured pictures of four concepts, two by two on white."""
    generator = torch.Generator().manual_seed(seed)
    photo = Image.new("RGB", (2 * CELL, 2 * CELL), "white")
    for place, concept in enumerate(concepts):
        picture = normalise(np.array(draw_concept(concept, "color", CELL - 2 * BORDER)))
        framed = F.pad(picture, (BORDER,) * 4, value=1.0)
        warped = random_warp(generator, WARP).image(framed).clamp(-1, 1)
        pixels = ((warped + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        row, column = divmod(place, 2)
        photo.paste(Image.fromarray(pixels), (column * CELL, row * CELL))
    return photo


def example_sketch(concept: Concept) -> Image.Image:
    """The line drawing of a concept, of the canvas's size."""
    return draw_concept(concept, "line", CANVAS)
