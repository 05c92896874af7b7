"""Images at the door: reading files, normalising, and refusing what cannot be right.

The encoder's normalised range is -1..1 (mean and standard deviation 0.5): -1 is black, 1 is white.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

MINIMUM_SIDE = 32
# Augmentation may overshoot -1..1 a little; pixels of 0..255 overshoot it a lot.
LARGEST_NORMALISED = 16.0


def open_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB: transparency composited on white, EXIF rotation applied.

    Raises:
        OSError: The file is missing or not an image that Pillow reads.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return flatten_image(image)
    except UnidentifiedImageError as error:
        raise OSError(f"{path} is not an image in a known format.") from error


def flatten_image(image: Image.Image) -> Image.Image:
    """Any Pillow image as RGB: transparency composited on white, EXIF rotation applied."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grey to 255 instead of scaling it.
        import numpy as np

        image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).round().astype("uint8"))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        image = canvas
    return image.convert("RGB")


def to_tensor(
    image: Image.Image,
    size: int | tuple[int, int] | None = None,
    fit: Literal["pad", "stretch"] = "pad",
) -> Tensor:
    """Pillow image to a normalised tensor.

    Args:
        image: Image of any mode.
        size: Height and width, or the side of a square; None keeps the image's own size.
        fit: ``"pad"`` keeps the aspect ratio and fills with white; ``"stretch"`` does neither.

    Returns:
        ``[3, H, W]``, float32 in -1..1.

    Raises:
        ValueError: Unknown ``fit``.
    """
    import numpy as np

    if fit not in ("pad", "stretch"):
        raise ValueError(f"fit must be 'pad' or 'stretch', got {fit!r}.")
    image = flatten_image(image)
    if size is not None:
        from PIL import Image, ImageOps

        height, width = (size, size) if isinstance(size, int) else size
        if fit == "pad":
            image = ImageOps.pad(
                image, (width, height), Image.Resampling.BICUBIC, color=(255, 255, 255)
            )
        else:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return pixels.permute(2, 0, 1) / 127.5 - 1.0


def check_image(image: Tensor, in_channels: int) -> None:
    """Refuse what cannot be a normalised image.

    Values are looked at except inside ``torch.compile``, on the meta device and while CUDA captures
    a graph, where that is impossible.

    Raises:
        TypeError: Not a floating point tensor.
        ValueError: Wrong rank, channels, size or range.
    """
    if not isinstance(image, Tensor):
        raise TypeError(
            f"expected a tensor [B, {in_channels}, H, W], got {type(image).__name__}. "
            "sketchfusion_plugins.images.to_tensor makes one from a Pillow image."
        )
    if not image.is_floating_point():
        raise TypeError(
            f"expected a floating point image normalised to -1..1, got {image.dtype}. "
            "Divide 0..255 by 127.5 and subtract 1."
        )
    if image.ndim != 4:
        raise ValueError(
            f"expected an image batch [B, {in_channels}, H, W], got {image.ndim} dimensions "
            f"{list(image.shape)}. Add a batch dimension with image[None]."
        )
    if image.shape[1] != in_channels:
        raise ValueError(
            f"expected {in_channels} channel(s), got {image.shape[1]} in {list(image.shape)}. "
            "Build the model with in_chans (timm) or in_channels of 1, 3 or 4 to match."
        )
    if image.shape[0] < 1:
        raise ValueError(f"expected at least one image, got a batch of shape {list(image.shape)}.")
    if min(image.shape[-2:]) < MINIMUM_SIDE:
        raise ValueError(
            f"expected sides of at least {MINIMUM_SIDE} px, got {image.shape[-2]} x "
            f"{image.shape[-1]}. Enlarge the image."
        )
    if torch.compiler.is_compiling() or image.is_meta:
        return
    if image.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    low, high = torch.stack(torch.aminmax(image.detach())).tolist()
    if low != low or high != high:
        raise ValueError("the image holds NaN. Check what produced it, such as a division by zero.")
    if max(-low, high) > LARGEST_NORMALISED:
        raise ValueError(
            f"expected an image normalised to -1..1, got values from {low:.4g} to {high:.4g}, "
            "which looks like 0..255. Divide by 127.5 and subtract 1."
        )


def to_rgb(image: Tensor) -> Tensor:
    """Normalised grey, RGB or RGBA batch as RGB; transparency is composited on white.

    Args:
        image: ``[B, 1 | 3 | 4, H, W]`` in -1..1; alpha too, -1 being transparent.

    Returns:
        ``[B, 3, H, W]`` in -1..1.
    """
    if image.shape[1] == 1:
        return image.expand(-1, 3, -1, -1)
    if image.shape[1] == 4:
        alpha = image[:, 3:] * 0.5 + 0.5
        return image[:, :3] * alpha + (1.0 - alpha)
    return image


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until both sides are multiples."""
    height, width = image.shape[-2:]
    right, bottom = -width % multiple, -height % multiple
    if right or bottom:
        return F.pad(image, (0, right, 0, bottom), mode="replicate")
    return image
