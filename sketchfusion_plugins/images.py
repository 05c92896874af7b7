"""Images at the door: reading files, normalising, and refusing what cannot be right.

The encoder's normalised range is -1..1 (mean and standard deviation 0.5): -1 is black, 1 is white.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
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
# Formats of drawings and photos. Pillow knows more, and starts another program for EPS.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}
# Pillow spreads grey of few bits over 0..255: what it multiplies samples by, by its name for them.
SPREAD_GREY = {"L;2": 85, "L;4": 17}


def open_image(path: str | Path, enough: int | None = None) -> Image.Image:
    """Read an image file as RGB: transparency composited on white, EXIF rotation applied.

    Of an animation the first frame is read. Grey of 16 bits is scaled to 8.

    Args:
        path: File.
        enough: Pixels that suffice for the shorter side: a JPEG is decoded at a half, a quarter or
            an eighth of its size where that is as large, which is faster. None reads all of it.

    Raises:
        OSError: The file is missing, damaged, not of one of `FORMATS`, or larger than Pillow's
            limit against decompression bombs (179 million pixels).
    """
    from PIL import Image, UnidentifiedImageError

    # A pipe would be waited for.
    if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
        raise OSError(f"{path} is a pipe or a device, expected a file.")
    try:
        # Of files that it opens itself, Pillow shears TIFFs that are to be turned.
        with Path(path).open("rb") as file, Image.open(file, formats=FORMATS) as image:
            if enough is not None:
                image.draft(None, (enough, enough))
            return flatten_image(image)
    except UnidentifiedImageError as error:
        raise OSError(
            f"{path} is not an image in a known format. Expected {', '.join(FORMATS)}."
        ) from error
    except Image.DecompressionBombError as error:
        raise OSError(f"{path}: {error} Make it smaller.") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{path} is a folder, expected a picture.") from error
    except OSError as error:
        if str(path) in str(error):
            raise
        raise OSError(f"{path} cannot be read: {error}") from error
    # Pillow's readers raise whatever they stumble over in a damaged file.
    except Exception as error:
        raise OSError(f"{path} is damaged or of a kind that cannot be read: {error}") from error


def flatten_image(image: Image.Image) -> Image.Image:
    """Any Pillow image as RGB: transparency composited on white, EXIF rotation applied.

    Grey of 2 or 4 bits of which one is transparent is composited right if it comes unloaded: how
    many bits there were is not known later.

    Raises:
        OSError: It comes unloaded, and its file is damaged.
        ValueError: Its pixels are floating point numbers, or whole ones beyond 16 bits.
    """
    from PIL import Image, ImageOps

    _load(image)
    # Damaged EXIF data raise whatever their reader stumbles over, and tell no rotation.
    with suppress(Exception):
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError(
            "its pixels are floating point numbers of no known range, expected 8 or 16 bits."
        )
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grey to 255 instead of scaling it.
        import numpy as np

        values = np.asarray(image, dtype=np.float64)
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise ValueError(
                f"its pixels are {values.min():.0f} to {values.max():.0f}, expected 8 or 16 bits."
            )
        clear = image.info.get("transparency")
        if clear is not None:
            values = np.where(values == clear, 65535, values)
        image = Image.fromarray((values / 257).round().astype("uint8"))
    if image.mode in PREMULTIPLIED:
        image = image.convert(PREMULTIPLIED[image.mode])
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        image = canvas
    flat = image.convert("RGB")
    # The rotation has been applied; whoever reads them again must not stumble again. Pillow takes
    # it from any of these.
    for place in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        flat.info.pop(place, None)
    return flat


def stored_as(image: Image.Image) -> str:
    """Pillow's name for the samples of a file that is opened and not loaded; else empty."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    # What a decoder is given, which begins with it.
    options = tiles[0][3]
    return str(options[0] if isinstance(options, tuple) and options else options)


def _load(image: Image.Image) -> None:
    """Load pixels, and make the transparent colour one of them."""
    samples = stored_as(image)
    image.load()
    clear = image.info.get("transparency")
    # Pillow brings a PNG's samples to 8 bits, and leaves the one that stands for none as it is. Of
    # colours of 16 bits the lower ones are gone, so that neighbours of it are none too.
    if isinstance(clear, int) and samples in SPREAD_GREY:
        clear *= SPREAD_GREY[samples]
    elif isinstance(clear, tuple) and samples == "RGB;16B":
        clear = tuple(value >> 8 for value in clear)
    if clear is not None:
        image.info["transparency"] = clear


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
        ValueError: Unknown ``fit``, or the image is so long that padding leaves nothing of it.
    """
    import numpy as np

    if fit not in ("pad", "stretch"):
        raise ValueError(f"fit must be 'pad' or 'stretch', got {fit!r}.")
    image = flatten_image(image)
    if size is not None:
        from PIL import Image, ImageOps

        height, width = (size, size) if isinstance(size, int) else size
        if fit == "pad":
            if (
                round(min(width * image.height / image.width, height * image.width / image.height))
                < 1
            ):
                raise ValueError(
                    f"an image of {image.width} x {image.height} px vanishes in {width} x {height} "
                    "px. Choose a larger size, or crop the image."
                )
            image = ImageOps.pad(
                image, (width, height), Image.Resampling.BICUBIC, color=(255, 255, 255)
            )
        else:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
    # Not in torch, whose threads would get in the way of a model's when images are read meanwhile.
    pixels = np.array(image, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(pixels).permute(2, 0, 1)


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
    if not _can_look(image):
        return
    low, high = torch.stack(torch.aminmax(image.detach())).tolist()
    if low != low or high != high:
        raise ValueError("the image holds NaN. Check what produced it, such as a division by zero.")
    if max(-low, high) > LARGEST_NORMALISED:
        raise ValueError(
            f"expected an image normalised to -1..1, got values from {low:.4g} to {high:.4g}, "
            "which looks like 0..255. Divide by 127.5 and subtract 1."
        )


def refuse_overflow(maps: Sequence[Tensor]) -> None:
    """Refuse maps in float16 that have overflowed.

    Stable Diffusion 2.1 asks for attention in float32 (``upcast_attention``), which diffusers'
    fused attention does not do. Values are looked at where `check_image` can.

    Raises:
        ValueError: A value is not finite.
    """
    narrow = [values for values in maps if values.dtype == torch.float16]
    if not narrow or not _can_look(narrow[0]):
        return
    if not all(bool(values.detach().isfinite().all()) for values in narrow):
        way = "autocast to torch.bfloat16 (mmengine: optim_wrapper.dtype='bfloat16')"
        # Autocast to float16 overrides what foundations are held in.
        if not torch.is_autocast_enabled(narrow[0].device.type):
            way = f"foundation_dtype='bfloat16', or {way}"
        raise ValueError(
            "the features overflow float16, whose largest value is 65,504. Use bfloat16, which has "
            f"the range of float32 at the same size: {way}."
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


def padded_side(side: int, multiple: int) -> int:
    """The least multiple that a side fits into."""
    # Not -side % multiple, which inductor's symbols do not know.
    return side + (multiple - side % multiple) % multiple


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until both sides are multiples."""
    height, width = image.shape[-2:]
    right, bottom = (padded_side(side, multiple) - side for side in (width, height))
    if right or bottom:
        return F.pad(image, (0, right, 0, bottom), mode="replicate")
    return image


def per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """Values ``[1, C, 1, 1]`` beside a map, to be broadcast.

    Filled in place: a copy would wait for all that a GPU has begun.
    """
    return torch.cat([like.new_full((1, 1, 1, 1), value) for value in values], dim=1)


def _can_look(values: Tensor) -> bool:
    """Whether values are there to be looked at."""
    if torch.compiler.is_compiling() or values.is_meta:
        return False
    return not (values.is_cuda and torch.cuda.is_current_stream_capturing())
