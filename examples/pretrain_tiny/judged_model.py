"""A model under judgement: its features of the judged data, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from judged_data import PART_DRAWINGS, JudgedData
from torch import Tensor
from tqdm import tqdm
from training import normalise

from sketchfusion_plugins.features import Features, pooled_descriptor

BATCH = 32


class Encoded(NamedTuple):
    """Descriptors ``[N, D]``, and maps ``[M, C, h, w]`` of the first M of the N pictures."""

    maps: Tensor
    descriptors: Tensor


class JudgedModel:
    """Features of a row of the table.

    Args:
        features: The row's features; with a method ``embed``, that is what retrieval uses.
        data: What it is judged on.
        device: Where the features are computed; all results are on the CPU.
    """

    def __init__(
        self, features: Features, data: JudgedData, device: str | torch.device = "cpu"
    ) -> None:
        self.features, self.data, self.device = features.eval().to(device), data, device

    @cached_property
    def queries(self) -> Encoded:
        """Of the warped held-out drawings, with the maps of the first warp."""
        return self.encode(self.data.queries, len(self.data.drawings[1]))

    @cached_property
    def seen_lines(self) -> Encoded:
        """Of the warped seen drawings."""
        return self.encode(self.data.seen_lines, PART_DRAWINGS)

    @cached_property
    def seen_pictures(self) -> Encoded:
        """Of seen pictures."""
        return self.encode(self.data.seen_pictures)

    @cached_property
    def galleries(self) -> dict[str, Encoded]:
        """Of held-out pictures, by artist."""
        return {name: self.encode(own.pixels) for name, own in self.data.galleries.items()}

    @cached_property
    def map_means(self) -> tuple[Tensor, Tensor]:
        """Mean over cells of seen drawings' and of seen pictures' maps, ``[C, 1, 1]`` each."""
        drawings, pictures = self.seen_lines.maps, self.seen_pictures.maps
        return drawings.mean((0, 2, 3))[:, None, None], pictures.mean((0, 2, 3))[:, None, None]

    def embed(self, pixels: Tensor, encoded: Encoded) -> Tensor:
        """What retrieval compares: embeddings where the model has them, else descriptors."""
        method = getattr(self.features, "embed", None)
        if method is None:
            return encoded.descriptors
        return torch.cat(list(self._batches(pixels, method)))

    def encode(self, pixels: Tensor, maps: int | None = None) -> Encoded:
        """Descriptors of pictures ``[N, 1 or 3, S, S]``, and maps of the first or of all."""
        count = len(pixels) if maps is None else maps
        if type(self.features).describe is not Features.describe:
            kept = torch.cat(list(self.maps(pixels[:count])))
            return Encoded(kept, self.describe(pixels))
        found, descriptors = [], []
        for own in self.maps(pixels):
            descriptors.append(pooled_descriptor(own))
            if count > 0:
                found.append(own[:count])
                count -= len(own)
        return Encoded(torch.cat(found), torch.cat(descriptors))

    def describe(self, pixels: Tensor) -> Tensor:
        """Descriptors ``[N, D]``."""
        return torch.cat(list(self._batches(pixels, self.features.describe)))

    def maps(self, pixels: Tensor) -> Iterator[Tensor]:
        """Maps of a batch at a time."""
        return self._batches(pixels, self.features)

    def _batches(self, pixels: Tensor, method: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        for part in tqdm(pixels.split(BATCH), desc="encoding", disable=None, leave=False):
            with torch.no_grad():
                images = normalise(part).expand(-1, 3, -1, -1).to(self.device)
                yield method(images).float().cpu()
