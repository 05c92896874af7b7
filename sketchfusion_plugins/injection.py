"""Injection of semantic tokens into the UNet: one learned 1x1 convolution per block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn


class ClipInjector(nn.Module):
    """Adds projected tokens to UNet block outputs (paper section 4.1).

    ``hidden + resize(conv1x1(tokens))``, bilinear without aligned corners, as in the released code;
    where it is cheaper ``conv1x1(resize(tokens))``, which is the same.

    Args:
        token_channels: Width of a token.
        sites: Output channels of every block that tokens are added to, by name.
        init: ``"zero"`` starts as the identity; ``"official"`` is a convolution's default
            initialisation, as in the released code.
    """

    def __init__(
        self,
        token_channels: int,
        sites: Mapping[str, int],
        init: Literal["zero", "official"] = "zero",
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleDict(
            {name: nn.Conv2d(token_channels, channels, 1) for name, channels in sites.items()}
        )
        self.init = init
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise anew."""
        for projection in self.projections.values():
            assert isinstance(projection, nn.Conv2d)
            projection.reset_parameters()
            if self.init == "zero":
                nn.init.zeros_(projection.weight)
                if projection.bias is not None:
                    nn.init.zeros_(projection.bias)

    def forward(self, name: str, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Output of block ``name`` with tokens added; unchanged at a block that is no site.

        Args:
            name: Block name.
            hidden: Block output ``[B * draws, C, h, w]``, draws innermost.
            tokens: ``[B, token_channels, rows, columns]``.

        Returns:
            ``[B * draws, C, h, w]`` in the precision of ``hidden``.
        """
        if name not in self.projections:
            return hidden
        # Or what stands for one, such as LoRA's.
        projection = cast("nn.Conv2d", self.projections[name])
        tokens = tokens.to(projection.weight.dtype)
        # Both are linear and bilinear weights sum to one, so either may come first: the one that
        # leaves the other fewer cells.
        if hidden.shape[-2:].numel() < tokens.shape[-2:].numel():
            addition: Tensor = projection(_resize(tokens, hidden))
        else:
            addition = _resize(projection(tokens), hidden)
        addition = addition.to(hidden.dtype)
        draws = hidden.shape[0] // tokens.shape[0]
        if draws > 1:
            addition = addition.repeat_interleave(draws, 0)
        return hidden + addition


def _resize(grid: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(grid, like.shape[-2:], mode="bilinear", align_corners=False)
