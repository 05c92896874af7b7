"""What the page shows for a drawing: one call, everything that the model has to say about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sketchfusion_plugins.demo.gallery import Gallery
from sketchfusion_plugins.demo.pictures import Box, PictureError, find_ink
from sketchfusion_plugins.demo.windows import Windows, describe_windows
from sketchfusion_plugins.features import FusedFeatures, join
from sketchfusion_plugins.heads.matching import match_points
from sketchfusion_plugins.images import open_image, to_tensor
from sketchfusion_plugins.inference.answers import (
    Model,
    describe,
    features_of,
    segment_picture,
    spread_over_ink,
)
from sketchfusion_plugins.inference.placement import Placement
from sketchfusion_plugins.maps import AGGREGATED, CLIP, DIFFUSION, all_maps
from sketchfusion_plugins.tasks.query_segmentation import QuerySegmentation
from sketchfusion_plugins.tasks.recognition import Recognition
from sketchfusion_plugins.viz import pca_rgb
from sketchfusion_plugins.viz.figures import PALETTE, VERMILION
from sketchfusion_plugins.wrappers import device_of

CLASSES = 5
SIMILAR = 8
POINTS = 6
THUMBNAIL = 192
THUMBNAILS = 512  # kept, of at most 110 kB each
SHOWN_SIDE = 384
TILE = 192
GAP = 6
FUSION = ("Stable Diffusion", "CLIP", "Fused")


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo, described once for all drawings.

    Attributes:
        image: RGB.
        windows: Its parts.
    """

    image: Image.Image
    windows: Windows


@dataclass(frozen=True, eq=False)
class Answer:
    """What is shown for one drawing.

    Attributes:
        classes: Names with their shares or probabilities, best first.
        similar: Pictures with their file, name and cosine similarity, best first.
        part: The photo, lighter where the drawing was not found.
        sketch_points: The sketch with numbered points.
        photo_points: The photo with the points where they were found.
        maps: The sketch's map beside that of the photo's part, in colours, by their model's name;
            both in one basis, so that equal colours are equal features.
    """

    classes: list[tuple[str, float]]
    similar: list[tuple[str, str, float, Image.Image]]
    part: Image.Image
    sketch_points: Image.Image
    photo_points: Image.Image
    maps: dict[str, Image.Image]


class Demonstration:
    """A model and a gallery, asked about drawings.

    Args:
        model: The model.
        gallery: Pictures described by the same model.
        size: Side, in pixels, of the square that pictures are padded to.
    """

    def __init__(self, model: Model, gallery: Gallery, size: int) -> None:
        self.model, self.gallery, self.size = model, gallery, size
        self.learned_classes = isinstance(model, Recognition)
        self.learned_parts = isinstance(model, QuerySegmentation)
        features = features_of(model)
        self._encoder = features.encoder if isinstance(features, FusedFeatures) else None

    @property
    def map_names(self) -> tuple[str, ...]:
        """Names of the maps that an answer has."""
        return ("This model",) if self._encoder is None else FUSION

    @torch.inference_mode()
    def photo(self, image: Image.Image) -> Photo:
        """Describe a photo's parts, which takes a second on a CPU."""
        return Photo(image, describe_windows(self.model, image, self.size))

    @torch.inference_mode()
    def answer(
        self, sketch: Image.Image, photo: Photo, points: Sequence[tuple[float, float]] = ()
    ) -> Answer:
        """Everything about a drawing.

        Args:
            sketch: The canvas, dark on white.
            photo: Where to look for it.
            points: Points ``(x, y)`` of the canvas to find; some on the ink by default.

        Raises:
            PictureError: There is nothing on the canvas to say anything about.
        """
        ink = find_ink(sketch)
        drawing = ink.crop(sketch)
        image = self._tensor(drawing)
        descriptor = describe(self.model, image)[0]
        box, _ = photo.windows.best(descriptor)
        pair = torch.cat([image, self._tensor(box.crop(photo.image))]).to(device_of(self.model))
        maps = self._maps(pair)
        # Of a drawing that was there before, points may lie away from this one.
        asked = [(x - ink.left, y - ink.top) for x, y in points if ink.holds(x, y)]
        start, end = self._matches(pair, maps[-1], torch.tensor(asked), ink.side, box.side)
        return Answer(
            self._classes(image, descriptor),
            self._similar(descriptor),
            self._part(drawing, photo.image, box),
            _dotted(sketch, start + torch.tensor([ink.left, ink.top])),
            _dotted(photo.image, end + torch.tensor([box.left, box.top])),
            {
                name: _side_by_side(pca_rgb(values))
                for name, values in zip(self.map_names, maps, strict=True)
            },
        )

    def _classes(self, image: Tensor, descriptor: Tensor) -> list[tuple[str, float]]:
        if not isinstance(self.model, Recognition):
            return self.gallery.classes(descriptor, CLASSES)
        shares = self.model(image.to(device_of(self.model)))[0].float().softmax(0)
        best = shares.topk(min(CLASSES, len(shares)))
        names = [self.model.classes[index] for index in best.indices.tolist()]
        return list(zip(names, best.values.tolist(), strict=True))

    def _similar(self, descriptor: Tensor) -> list[tuple[str, str, float, Image.Image]]:
        found = []
        for hit in self.gallery.similar(descriptor, SIMILAR):
            place = self.gallery.picture(hit.key)
            try:
                picture = _thumbnail(place, Path(place).stat().st_mtime_ns)
            except OSError:
                # The user has moved or deleted it since it was described.
                continue
            found.append((place, self.gallery.name(hit.key), hit.score, picture))
        return found

    def _part(self, drawing: Image.Image, photo: Image.Image, box: Box) -> Image.Image:
        width, height = photo.size
        if self.learned_parts:
            mask = segment_picture(self.model, drawing, photo, self.size).numpy()
        else:
            rows, columns = np.arange(height)[:, None], np.arange(width)
            inside = (rows >= box.top) & (rows < box.top + box.side)
            mask = inside & (columns >= box.left) & (columns < box.left + box.side)
        pixels = np.asarray(photo, dtype=np.float32)
        faded = np.where(mask[..., None], pixels, 255 - (255 - pixels) * 0.25)
        shown = _enlarged(Image.fromarray(faded.round().astype(np.uint8)))
        if not self.learned_parts:
            scale = shown.width / width
            corners = [box.left, box.top, box.left + box.side, box.top + box.side]
            edges = [round(value * scale) for value in corners]
            frame = [max(edges[0], 1), max(edges[1], 1)]
            frame += [min(edges[2], shown.width - 2), min(edges[3], shown.height - 2)]
            ImageDraw.Draw(shown).rectangle(frame, outline=VERMILION, width=3)
        return shown

    def _matches(
        self, pair: Tensor, maps: Tensor, asked: Tensor, side: int, part_side: int
    ) -> tuple[Tensor, Tensor]:
        """Points of the drawing, and where they are in the photo's part, in the pixels of both."""
        if len(asked):
            start = asked * (self.size / side)
        else:
            square = Placement(self.size, self.size, self.size)
            start = spread_over_ink(pair[0].cpu(), square, POINTS)
        stride = features_of(self.model).cell_size(pair, maps)
        end = match_points(
            maps[:1],
            maps[1:],
            start[None].to(maps.device),
            source_stride=stride,
            target_stride=stride,
        )
        found = end[0].cpu().clamp(0, self.size)
        return start * (side / self.size), found * (part_side / self.size)

    def _maps(self, pair: Tensor) -> tuple[Tensor, ...]:
        """Maps of sketch and photo, in the order of `map_names`; the model's own is the last."""
        if self._encoder is None:
            return (features_of(self.model)(pair).float(),)
        found = all_maps(self._encoder, pair)
        levels = [own for name, own in found.items() if name.startswith(DIFFUSION)]
        return join(levels), found[CLIP], found[AGGREGATED].float()

    def _tensor(self, image: Image.Image) -> Tensor:
        return to_tensor(image, self.size)[None]


@lru_cache(maxsize=THUMBNAILS)
def _thumbnail(place: str, changed: int) -> Image.Image:
    """A picture of the gallery, small; photos of a camera take a while, and come back often."""
    picture = open_image(place, enough=THUMBNAIL)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture


def add_point(
    points: Sequence[tuple[float, float]], point: tuple[float, float], sketch: Image.Image
) -> list[tuple[float, float]]:
    """Points with another one, the latest `POINTS` of them.

    Raises:
        PictureError: The point lies away from the drawing.
    """
    if not find_ink(sketch).holds(*point):
        raise PictureError("Click on the drawing, or close to it.")
    return [*points, point][-POINTS:]


def _enlarged(image: Image.Image) -> Image.Image:
    """A picture of at least `SHOWN_SIDE`, so that dots and lines on it are fine."""
    factor = max(1.0, SHOWN_SIDE / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _dotted(image: Image.Image, points: Tensor) -> Image.Image:
    """A picture with numbered dots at points ``[N, 2]`` of its pixels."""
    shown = _enlarged(image)
    scale = shown.width / image.width
    pen = ImageDraw.Draw(shown)
    radius = max(shown.size) / 26
    font = ImageFont.load_default(size=1.4 * radius)
    for number, (x, y) in enumerate((points * scale).tolist()):
        # Numbers stay whole at the edge of the picture.
        x = min(max(x, radius), shown.width - 1 - radius)
        y = min(max(y, radius), shown.height - 1 - radius)
        circle = (x - radius, y - radius, x + radius, y + radius)
        colour = PALETTE[number % len(PALETTE)]
        pen.ellipse(circle, fill=colour, outline="white", width=max(1, round(radius / 6)))
        pen.text((x, y), str(number + 1), "white", font, anchor="mm")
    return shown


def _side_by_side(colours: NDArray[np.float64]) -> Image.Image:
    """Two maps ``[2, h, w, 3]`` as one picture, cells as squares."""
    canvas = Image.new("RGB", (2 * TILE + GAP, TILE), "white")
    for column, values in enumerate((255 * colours).round().astype(np.uint8)):
        tile = Image.fromarray(values).resize((TILE, TILE), Image.Resampling.NEAREST)
        canvas.paste(tile, (column * (TILE + GAP), 0))
    return canvas
