"""The frozen semantic branch: an image transformer's patch tokens on a grid.

Any model that fits `SemanticBranch` can stand in; two are given, for transformers' CLIP and for
timm's ViTs (DINOv2, DINOv3, SigLIP, ...). `semantic_loading` builds them from the hub and folders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchfusion_plugins.images import per_channel

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@runtime_checkable
class SemanticBranch(Protocol):
    """What the encoder asks of a semantic branch.

    Attributes:
        channels: Width of a token.
        patch_size: Pixels per token.
        image_size: Side of the square images that it was trained on.
        mean: Mean of its input normalisation, RGB in 0..1.
        std: Standard deviation of its input normalisation.
    """

    channels: int
    patch_size: int
    image_size: int
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, image: Tensor) -> Tensor:
        """Tokens ``[B, channels, H / patch_size, W / patch_size]`` of a normalised image."""
        ...


class ClipVision(nn.Module):
    """Patch tokens of transformers' CLIP vision tower, without the class token.

    Position embeddings are interpolated for grids other than the trained one.
    """

    def __init__(
        self,
        model: Any,
        final_norm: bool = False,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        super().__init__()
        self.channels: int = model.config.hidden_size
        self.patch_size: int = model.config.patch_size
        self.image_size: int = model.config.image_size
        self.mean: Sequence[float] = tuple(mean)
        self.std: Sequence[float] = tuple(std)
        # The tower applies it to the class token alone, which is not used here.
        self.final_norm = model.post_layernorm if final_norm else nn.Identity()
        model.post_layernorm = nn.Identity()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """See `SemanticBranch`."""
        weight = self.model.embeddings.patch_embedding.weight
        output = self.model(image.to(weight.dtype), interpolate_pos_encoding=True)
        tokens = self.final_norm(output.last_hidden_state[:, 1:])
        rows, columns = (side // self.patch_size for side in image.shape[-2:])
        grid: Tensor = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        return grid


class TimmVision(nn.Module):
    """Patch tokens of a timm ViT, without its prefix tokens."""

    def __init__(self, model: Any, final_norm: bool = False) -> None:
        super().__init__()
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(
                f"{type(model).__name__} has no forward_intermediates and cannot be a semantic "
                "branch; choose a ViT such as 'vit_base_patch14_dinov2.lvd142m'."
            )
        config = model.pretrained_cfg
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        self.channels: int = model.num_features
        self.patch_size: int = model.feature_info[-1]["reduction"]
        self.image_size: int = (size or config["input_size"][1:])[0]
        self.mean: Sequence[float] = tuple(config["mean"])
        self.std: Sequence[float] = tuple(config["std"])
        self.last = len(model.feature_info) - 1
        if final_norm and isinstance(getattr(model, "norm", None), nn.Identity):
            # Where timm pools by the mean, the last norm comes after it.
            model.norm = getattr(model, "fc_norm", model.norm)
        model.prune_intermediate_layers([self.last], prune_norm=not final_norm, prune_head=True)
        self.norm = final_norm
        self.weighted = next(
            name
            for name, module in model.named_modules()
            if isinstance(getattr(module, "weight", None), Tensor)
        )
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """See `SemanticBranch`."""
        # A replica of nn.DataParallel has weights, and lists no parameters.
        dtype = self.model.get_submodule(self.weighted).weight.dtype
        tokens: list[Tensor] = self.model.forward_intermediates(
            # Some ViTs begin with a stem of convolutions, which run faster with channels innermost.
            image.to(dtype).contiguous(memory_format=torch.channels_last),
            indices=[self.last],
            norm=self.norm,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return tokens[0]


def resize_for_tokens(image: Tensor, branch: SemanticBranch, shrink: bool = True) -> Tensor:
    """Image as the semantic branch wants it: same field of view, about its trained token count.

    The aspect ratio is kept up to rounding to whole patches and nothing is cropped, so that token
    ``(i, j)`` of the grid covers the same part of the image as the UNet's cells there do.

    Args:
        image: ``[B, 3, H, W]`` in -1..1.
        branch: Branch that will read it.
        shrink: Whether images larger than its own are shrunk; if not, they get more tokens.

    Returns:
        Image ``[B, 3, H', W']``, sides divisible by ``patch_size``, normalised for the branch.
    """
    height, width = image.shape[-2:]
    grid: float = branch.image_size // branch.patch_size
    if not shrink:
        grid = max(grid, math.sqrt(height * width) / branch.patch_size)
    rows = max(1, round(grid * math.sqrt(height / width)))
    columns = max(1, round(grid * math.sqrt(width / height)))
    size = (rows * branch.patch_size, columns * branch.patch_size)
    pixels = image.float()
    if size != (height, width):
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
    mean, std = (per_channel(values, pixels) for values in (branch.mean, branch.std))
    return (pixels * 0.5 + 0.5 - mean) / std
