"""What the encoder returns: the foundations' outputs, and levels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sketchfusion_plugins.aggregation import cells
from sketchfusion_plugins.diffusion import Diffusion


class FoundationOutputs(NamedTuple):
    """What frozen foundations make of an image batch before anything that trains is involved.

    Attributes:
        latents: Clean, scaled latents of the VAE, ``[B, C, h, w]``.
        tokens: Tokens of the semantic branch, ``[B, channels, rows, columns]``; None where none are
            injected.
        image_size: Height and width of the images in pixels.
    """

    latents: Tensor
    tokens: Tensor | None
    image_size: tuple[int, int]

    def check(self, diffusion: Diffusion, token_channels: int | None) -> None:
        """Refuse what another encoder made.

        Args:
            diffusion: Branch that is to denoise the latents.
            token_channels: Width of the tokens that are to be injected; None where none are.

        Raises:
            ValueError: Latents or tokens are not of the expected shape, or tokens are missing.
        """
        channels = diffusion.denoiser.unet.config["in_channels"]
        rows, columns = cells(self.image_size, diffusion.latent_stride)
        batch = self.latents.shape[0]
        expected = (batch, channels, rows, columns)
        if self.latents.shape != expected:
            height, width = self.image_size
            raise ValueError(
                f"expected latents {list(expected)} of images of {height} x {width} px, got "
                f"{list(self.latents.shape)}. Are they of another encoder?"
            )
        if token_channels is None:
            return
        if self.tokens is None:
            raise ValueError(
                "these foundation outputs hold no tokens to inject. Make them with encode(image), "
                "or ask for forward_levels(..., fuse=False)."
            )
        if self.tokens.shape[:2] != (batch, token_channels):
            raise ValueError(
                f"expected tokens [{batch}, {token_channels}, rows, columns], got "
                f"{list(self.tokens.shape)}. Are they of another encoder?"
            )


class FeatureLevels(NamedTuple):
    """Maps of one image batch, fine to coarse.

    Attributes:
        maps: ``[B, C, ceil(H / stride), ceil(W / stride)]`` per level.
        strides: Pixels per cell of every level.
        names: UNet block that every level is the output of.
    """

    maps: tuple[Tensor, ...]
    strides: tuple[int, ...]
    names: tuple[str, ...]
