"""Maps and descriptors to compare: SketchFusion's, its parts', other backbones', plain baselines'.

Every one is a module that maps images to feature maps, so that each goes through the same code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sketchfusion_plugins.baselines import hog_blocks, hog_features, pixel_features
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.heads.cells import pool_to_grid
from sketchfusion_plugins.heads.query import ink_cells, query_similarity
from sketchfusion_plugins.hub import timm_safetensors
from sketchfusion_plugins.images import padded_side, to_rgb

GRID = 4
CELL = 8


class Features(nn.Module):
    """Images to maps, and to one descriptor per image.

    Attributes:
        channels: Channels of the maps.
        stride: Pixels per cell, where the last cells may reach beyond the image; None where a map
            spans its image exactly, whatever the size. `cell_size` is exact.
    """

    channels: int
    stride: int | None = None

    def forward(self, image: Tensor) -> Tensor:
        """Map ``[B, channels, h, w]`` of images ``[B, 3, H, W]`` in -1..1."""
        raise NotImplementedError

    def cell_size(self, image: Tensor, cells: Tensor) -> tuple[float, float]:
        """Pixels per cell, vertical and horizontal.

        Args:
            image: Images ``[B, 3, H, W]``.
            cells: Their map ``[B, channels, h, w]``.
        """
        if self.stride is not None:
            return float(self.stride), float(self.stride)
        return image.shape[-2] / cells.shape[-2], image.shape[-1] / cells.shape[-1]

    def describe(self, image: Tensor) -> Tensor:
        """Unit descriptors ``[B, D]``; see `pooled_descriptor`."""
        return pooled_descriptor(self(image))


class FusedFeatures(Features):
    """The aggregated map of a SketchFusion encoder.

    Raises:
        ValueError: The encoder has no single aggregated map.
    """

    stride: int

    def __init__(self, encoder: SketchFusionEncoder) -> None:
        super().__init__()
        aggregation = encoder.config.aggregation
        if aggregation is None or not isinstance(aggregation.stride, int):
            raise ValueError(
                "expected an encoder that aggregates to one map (aggregation.stride a number), "
                f"got aggregation {aggregation}."
            )
        self.encoder = encoder
        self.channels = aggregation.out_channels
        self.stride = aggregation.stride

    def forward(self, image: Tensor) -> Tensor:
        """See `Features.forward`."""
        result = self.encoder(image)
        assert isinstance(result, Tensor)
        return result

    def cell_size(self, image: Tensor, cells: Tensor) -> tuple[float, float]:
        """See `Features.cell_size`: coarse maps span the image as it was padded for the VAE."""
        multiple = self.encoder.diffusion.latent_stride
        if multiple % self.stride == 0:
            return float(self.stride), float(self.stride)
        height, width = (padded_side(side, multiple) for side in image.shape[-2:])
        return height / -(-height // self.stride), width / -(-width // self.stride)


class DiffusionFeatures(Features):
    """Stable Diffusion's own levels, each of unit length, joined at the finest stride."""

    def __init__(self, encoder: SketchFusionEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.channels = sum(block.channels for block in encoder.level_blocks)
        self.stride = encoder.level_blocks[0].stride

    def forward(self, image: Tensor) -> Tensor:
        """See `Features.forward`."""
        return join(self.encoder.forward_levels(image, fuse=False).maps)


class ClipFeatures(Features):
    """CLIP's patch tokens on their own grid, or those of what stands in for CLIP."""

    def __init__(self, encoder: SketchFusionEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.channels = encoder.semantic.channels

    def forward(self, image: Tensor) -> Tensor:
        """See `Features.forward`."""
        return self.encoder.forward_tokens(image)

    def cell_size(self, image: Tensor, cells: Tensor) -> tuple[float, float]:
        """See `Features.cell_size`: the grid spans the image as it was padded for the VAE."""
        multiple = self.encoder.diffusion.latent_stride
        height, width = (padded_side(side, multiple) for side in image.shape[-2:])
        return height / cells.shape[-2], width / cells.shape[-1]


class ConcatenatedFeatures(Features):
    """Stable Diffusion and CLIP side by side, nothing learned: the paper's "SD + CLIP".

    Both parts have unit length and so weigh the same, as in Zhang et al., "A Tale of Two Features"
    (NeurIPS 2023), where it is Stable Diffusion and DINOv2.
    """

    def __init__(self, encoder: SketchFusionEncoder) -> None:
        super().__init__()
        self.diffusion = DiffusionFeatures(encoder)
        self.clip = ClipFeatures(encoder)
        self.channels = self.diffusion.channels + self.clip.channels
        self.stride = self.diffusion.stride

    def forward(self, image: Tensor) -> Tensor:
        """See `Features.forward`."""
        return join((self.diffusion(image), self.clip(image)))


class TimmFeatures(Features):
    """The last map of any timm model, for instance ``vit_base_patch14_dinov2``.

    Args:
        name: timm name.
        pretrained: Load timm's weights.
        size: Side that images are resized to before; None keeps them.

    Attributes:
        channels_last: The model's own maps are ``[B, h, w, channels]``, as of Swin and MambaOut.

    Raises:
        ValueError: The name is ``local-dir:FOLDER``, and the folder holds no safetensors.
    """

    def __init__(self, name: str, pretrained: bool = True, size: int | None = None) -> None:
        super().__init__()
        import timm
        from torchvision.transforms.v2 import Normalize

        # Convolutional models read any size, and take no such argument.
        known = timm.models.resolve_model_input_args(name)["pretrained_cfg"]
        fixed = size is not None and known["fixed_input_size"]
        sizing = {"img_size": size} if fixed else {}
        self.model = timm.create_model(
            name,
            pretrained=pretrained,
            pretrained_cfg_overlay=timm_safetensors(name) if pretrained else None,
            features_only=True,
            out_indices=(-1,),
            **sizing,
        )
        self.model.eval().requires_grad_(False)
        self.size = size
        self.channels = self.model.feature_info.channels()[-1]
        # Wrappers that take channels first alone do not say so.
        self.channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        config = self.model.pretrained_cfg
        self.normalise = Normalize(config["mean"], config["std"])

    def train(self, mode: bool = True) -> TimmFeatures:
        """Set the mode; the frozen model stays in eval mode."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """See `Features.forward`."""
        if self.size is not None:
            image = F.interpolate(image, (self.size, self.size), mode="bicubic", antialias=True)
        result: Tensor = self.model(self.normalise(to_rgb(image) * 0.5 + 0.5))[0]
        return result.permute(0, 3, 1, 2) if self.channels_last else result


class HogFeatures(Features):
    """Histograms of oriented gradients: a cell's map is the mean of the four blocks it is part of.

    The descriptor is the classical one; see `sketchfusion_plugins.baselines.hog_features`.
    """

    channels = 36
    stride = CELL

    def forward(self, image: Tensor) -> Tensor:
        """See `Features.forward`."""
        blocks = []
        for picture in _pad_white(image).mean(1).cpu().numpy():
            found = torch.from_numpy(hog_blocks(picture))
            blocks.append(found.flatten(2).permute(2, 0, 1).float())
        around = F.pad(torch.stack(blocks), (1, 1, 1, 1), mode="replicate")
        return F.avg_pool2d(around, 2, stride=1).to(image.device)

    def describe(self, image: Tensor) -> Tensor:
        """See `Features.describe`."""
        described = torch.from_numpy(hog_features(_to_bytes(image)))
        return F.normalize(described.to(image.device), dim=1)


class PixelFeatures(Features):
    """Darkness of the 8x8 pixels under every cell; the descriptor is the image at 16 px."""

    channels = CELL**2
    stride = CELL

    def forward(self, image: Tensor) -> Tensor:
        """See `Features.forward`."""
        dark = (1 - _pad_white(image).mean(1, keepdim=True)) / 2
        return F.pixel_unshuffle(dark, CELL)

    def describe(self, image: Tensor) -> Tensor:
        """See `Features.describe`."""
        described = torch.from_numpy(pixel_features(_to_bytes(image)))
        return F.normalize(described.to(image.device), dim=1)


class RandomFeatures(Features):
    """Noise: what the judgement gives to features that know nothing. Seeded, anew at each call."""

    channels = 64
    stride = CELL

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, image: Tensor) -> Tensor:
        """See `Features.forward`."""
        rows, columns = (-(-side // CELL) for side in image.shape[-2:])
        shape = (len(image), self.channels, rows, columns)
        return torch.randn(shape, generator=self.generator).to(image.device)


def pooled_descriptor(maps: Tensor) -> Tensor:
    """Unit descriptors ``[B, D]`` of maps ``[B, C, h, w]``: their means over 4x4 parts.

    A mean over the whole image would forget where things are.
    """
    return F.normalize(pool_to_grid(maps.float(), GRID).flatten(1), dim=1)


def pixel_similarity(features: Features, sketch: Tensor, photo: Tensor) -> Tensor:
    """Cosine similarity of the mean descriptor of a sketch's ink with every pixel of a photo.

    Args:
        features: What both are compared by.
        sketch: ``[B, 3, h, w]`` in -1..1.
        photo: ``[B, 3, H, W]`` in -1..1.

    Returns:
        ``[B, H, W]`` in -1..1, bilinear between the centres of cells, float32 at least.
    """
    asked, cells = features(sketch), features(photo)
    shape = (asked.shape[-2], asked.shape[-1])
    ink = ink_cells(sketch, shape, features.cell_size(sketch, asked))
    size = (photo.shape[-2], photo.shape[-1])
    return query_similarity(asked, cells, size, ink, features.cell_size(photo, cells))


def join(maps: Sequence[Tensor]) -> Tensor:
    """Maps of unit length per cell, resized to the first one's grid and concatenated.

    Args:
        maps: ``[B, C_i, h_i, w_i]``, the finest first.

    Returns:
        ``[B, sum(C_i), h_0, w_0]``, fp32.
    """
    size = maps[0].shape[-2:]
    resized = [
        F.interpolate(F.normalize(level.float(), dim=1), size, mode="bilinear") for level in maps
    ]
    return torch.cat(resized, 1)


def _pad_white(image: Tensor) -> Tensor:
    bottom, right = -image.shape[-2] % CELL, -image.shape[-1] % CELL
    return F.pad(to_rgb(image).float(), (0, right, 0, bottom), value=1.0)


def _to_bytes(image: Tensor) -> NDArray[np.uint8]:
    pixels = ((to_rgb(image).float() + 1) * 127.5).round().clamp(0, 255)
    return pixels.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()
