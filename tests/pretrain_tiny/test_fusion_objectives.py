"""What the fusion stage of sketchfusion_tiny sees and minimises, on squares in plain colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sketchfusion_plugins.data.openmoji import Concept
from sketchfusion_plugins.data.openmoji_drawings import Drawings
from sketchfusion_plugins.data.openmoji_parts import CLASSES
from sketchfusion_plugins.features import Features

SIZE = 128
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255), (0, 0, 0), (0, 255, 255)]
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
    '<g id="color"><rect x="18" y="18" width="36" height="36" fill="#fc0"/></g>'
    '<g id="line"><rect x="18" y="18" width="36" height="36" fill="none" stroke="#000"/></g></svg>'
)
Load = Callable[[str], ModuleType]


class MeanColour(Features):
    """What a cell's colour is, and nothing else."""

    channels = 3

    def forward(self, image: Tensor) -> Tensor:
        return F.avg_pool2d(image, 8)


@pytest.fixture
def squares(tmp_path: Path) -> Drawings:
    """Six concepts, each a square of its own colour whose drawing is a black square."""
    svg = tmp_path / "square.svg"
    svg.write_text(SVG, encoding="utf-8")
    line = np.full((6, SIZE, SIZE, 3), 255, np.uint8)
    line[:, 32:96, 32:96] = 0
    color, coverage = np.full_like(line, 255), np.zeros(line.shape[:3], np.uint8)
    for index, colour in enumerate(COLOURS):
        color[index, 32:96, 32:96] = colour
    coverage[:, 32:96, 32:96] = 255
    concepts = tuple(Concept(f"1F60{i}", str(i), "g", "s", svg) for i in range(6))
    return Drawings(concepts, line, color, coverage, tuple("abcdef"))


def test_regions_move_with_the_drawing(squares: Drawings, load: Load) -> None:
    pairs = load("aligned_pairs").AlignedPairs(squares)
    lines = torch.from_numpy(squares.line).permute(0, 3, 1, 2) / 127.5 - 1
    generator = torch.Generator().manual_seed(0)
    chosen = np.arange(6)
    aligned = pairs(chosen, lines, generator, np.random.default_rng(0))
    painted = aligned.regions == CLASSES.index("object")
    assert torch.equal(painted, aligned.regions > 0)
    inked = aligned.images[0][:, 0] < 0
    # Edges are half a pixel's matter; all the rest is the same.
    assert (painted != inked).float().mean() < 0.01
    assert 0.1 < inked.float().mean() < 0.5
    # Points lie on the ink of the drawing and, moved otherwise, on the picture.
    for image, points in zip(aligned.images, aligned.points, strict=True):
        grid = points[aligned.visible[:, :, None].expand_as(points)].reshape(-1, 2)
        assert len(grid) > 60
        rows = torch.arange(6)[:, None].expand(-1, points.shape[1])[aligned.visible]
        x, y = (grid - 0.5).round().long().unbind(1)
        off_white = image.amin(1)[rows, y, x] < 0.5
        assert off_white.float().mean() > 0.95


def test_scenes_show_the_artists_pictures(squares: Drawings, load: Load) -> None:
    data, scenes = load("data"), load("scenes")
    # An artist who draws five of the six, in a colour that OpenMoji has not.
    pixels = torch.full((5, 3, SIZE, SIZE), 255, dtype=torch.uint8)
    pixels[:, :, 32:96, 32:96] = torch.tensor([255, 128, 0], dtype=torch.uint8)[:, None, None]
    codes = [concept.hexcode for concept in squares.concepts[:5]]
    rows = tuple(data.Row("noto", code, (), code, False) for code in codes)
    pictures = data.Pictures(pixels, rows)
    found, numbers = scenes.pictures_by("noto", pictures, squares)
    assert numbers.tolist() == list(range(5)) and torch.equal(found, pixels)
    draw = scenes.RandomScenes(squares, pictures, ("noto", "nobody"))
    seen = set()
    for number in range(24):
        photo, mask = draw(1, np.random.default_rng(number))
        assert photo.shape == (3, 2 * SIZE, 2 * SIZE) and mask.shape == (2 * SIZE, 2 * SIZE)
        colour = photo[:, mask].median(1).values
        seen.add(tuple(((colour + 1) * 127.5).round().int().tolist()))
    assert seen == {(0, 255, 0), (255, 128, 0)}
    # The artist lacks the last one.
    for number in range(8):
        photo, mask = draw(5, np.random.default_rng(number))
        assert photo[:, mask].median(1).values.tolist() == pytest.approx([-1, 1, 1], abs=0.01)


def test_best_quadrant_is_where_a_tenth_is_most_similar(load: Load) -> None:
    similarity = torch.zeros(2, 20, 20)
    similarity[0, :10, 10:] = 0.3
    similarity[0, 0, 0] = 1.0  # a single cell is less than a tenth of 100 cells
    similarity[1, 15, 2:12] = 0.9  # eight cells to the left, two to the right
    assert load("scenes").best_quadrants(similarity).tolist() == [1, 2]


def _batch(load: Load, colours: list[int], masks: Tensor) -> Any:
    """Drawings that are squares in plain colours, and a scene that shows the first four."""
    data, aligned = load("fusion_data"), load("aligned_pairs")
    pairs = len(colours)
    images = torch.ones(pairs, 3, SIZE, SIZE)
    for image, colour in zip(images, colours, strict=True):
        image[:, 32:96, 32:96] = torch.tensor(COLOURS[colour])[:, None, None] / 127.5 - 1
    scene = torch.cat([torch.cat([*images[:2]], 2), torch.cat([*images[2:4]], 2)], 1)
    points = torch.full((data.ALIGNED, aligned.POINTS, 2), 64.0)
    inside = torch.full((data.PARTS, data.PART_POINTS, 2), 64.0)
    labels = torch.zeros(data.PARTS, data.PART_POINTS, dtype=torch.long)
    first = images[: data.ALIGNED]
    regions = (first.amin(1) < 1).long()
    return images, data.FusionBatch(
        drawing=images,
        picture=images,
        concept=torch.arange(pairs),
        subgroup=torch.arange(pairs) % 3,
        sketch_class=torch.arange(pairs) % 4,
        aligned=aligned.Aligned(
            (first, first), (points, points), torch.ones(points.shape[:2]).bool(), regions
        ),
        scenes=scene.expand(data.SCENES, -1, -1, -1),
        scene_masks=masks,
        part_points=(inside, inside),
        parts=(labels, labels),
    )


def test_objectives_say_what_they_are_for(load: Load) -> None:
    objectives, models = load("objectives"), load("fusion_models")
    torch.manual_seed(0)
    model = models.GeneralModel(MeanColour(), 3, 4)
    weights = {"region": 0.0, "scene_dice": 2.0}
    strokes = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    trained = objectives.Objectives(model, strokes, weights)
    quadrants = torch.zeros(4, 2 * SIZE, 2 * SIZE, dtype=torch.long)
    for place in range(4):
        row, column = (SIZE * n + 32 for n in divmod(place, 2))
        quadrants[place, row : row + 64, column : column + 64] = 1
    colours = [0, 1, 2, 3, 5, *([4] * 9)]
    images, batch = _batch(load, colours, quadrants)
    losses = trained(torch.cat([images, images]), batch)
    expected = {**objectives.WEIGHTS, **weights}
    assert losses.keys() == {"loss", *expected}
    total = sum(expected[name] * losses[name].item() for name in expected)
    assert losses["loss"].item() == pytest.approx(total, rel=1e-5)
    # A square that is looked for where another one is, is not found.
    images, wrong = _batch(load, colours, quadrants.flip(0))
    mistaken = trained(torch.cat([images, images]), wrong)
    for name in ("scene_bce", "scene_dice"):
        assert mistaken[name].item() > losses[name].item() + 0.02
    # A region that the drawing shows can be learnt from its map alone.
    learner = torch.optim.Adam(trained.regions.parameters(), 0.1)
    for _ in range(60):
        learner.zero_grad()
        trained(torch.cat([images, images]), batch)["region"].backward()
        learner.step()
    assert trained(torch.cat([images, images]), batch)["region"].item() < 0.2
    with pytest.raises(ValueError, match=r"no losses \['regions'\]; choose among instance"):
        objectives.Objectives(model, strokes, {"regions": 1.0})


def test_parts_are_told_apart_within_their_class_alone(load: Load) -> None:
    objectives, models = load("objectives"), load("fusion_models")
    trained = objectives.Objectives(
        models.GeneralModel(MeanColour(), 3, 4), torch.tensor([0, 0, 1, 1])
    )
    # By colour the second part is right; a part of another class is nearer still.
    trained.strokes.weight.data = torch.tensor(
        [[0.0, 1.0, 0.0], [1.0, 0.2, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    )
    images, batch = _batch(load, [0] * 14, torch.zeros(4, 2 * SIZE, 2 * SIZE, dtype=torch.long))
    for part, low in ((0, False), (1, True)):
        labels = tuple(torch.full_like(own, part) for own in batch.parts)
        losses = trained(torch.cat([images, images]), replace(batch, parts=labels))
        assert (losses["parts"].item() < 0.01) == low
        assert losses["stroke"].item() > 0.5


def test_points_are_sent_to_their_place(load: Load) -> None:
    cell_entropy = load("objectives").cell_entropy
    # Cells that differ from their neighbours by a turn of 6 degrees along either axis.
    angle = torch.arange(16) * 0.105
    turn = torch.stack([angle.cos(), angle.sin()])
    picture = torch.cat([turn[:, :, None].expand(-1, -1, 16), turn[:, None, :].expand(-1, 16, -1)])[
        None
    ]
    visible = torch.tensor([[True, False]])
    right, wrong = torch.tensor([[[44.0, 84.0]] * 2]), torch.tensor([[[60.0, 84.0]] * 2])
    asked = F.normalize(picture[:, :, 10, 5], dim=1)[:, None].expand(-1, 2, -1)
    near, far = (cell_entropy(asked, picture, place, visible) for place in (right, wrong))
    assert near < far - 0.5
    # No less than the entropy of what is right, a Gaussian of 3 px on cells of 4 px.
    assert near > 2.2
    assert cell_entropy(asked, picture, right, torch.zeros(1, 2, dtype=torch.bool)) == 0
