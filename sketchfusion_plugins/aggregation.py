"""Adaptive aggregation: levels to one map, or to a pyramid with one map per stride."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """torch's, which also takes a group of one value, as of an image of one cell: it is 0."""

    def forward(self, values: Tensor) -> Tensor:
        """See `torch.nn.GroupNorm`."""
        return torch.group_norm(values, self.num_groups, self.weight, self.bias, self.eps)


class Bottleneck(nn.Module):
    """Residual bottleneck of one branch: 1x1, 3x3, 1x1 convolutions with GroupNorm.

    The shortcut is the identity where channels agree, a 1x1 convolution with GroupNorm elsewhere.
    Convolutions have no bias and MSRA initialisation, as in the released code.
    """

    def __init__(
        self, in_channels: int, out_channels: int, channels: int, norm_groups: int = 32
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.reduce_norm = GroupNorm(norm_groups, channels)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.mix_norm = GroupNorm(norm_groups, channels)
        self.expand = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.expand_norm = GroupNorm(norm_groups, out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                GroupNorm(norm_groups, out_channels),
            )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise anew."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()

    def forward(self, level: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Resize a level, then refine it.

        1x1 convolutions without bias and bilinear resizing commute, so either comes first: the one
        that leaves the other fewer cells.

        Args:
            level: ``[B, in_channels, h, w]``.
            size: Rows and columns of the result; None for the level's own.

        Returns:
            ``[B, out_channels, rows, columns]``.
        """
        size = (level.shape[-2], level.shape[-1]) if size is None else size
        if level.shape[-2:].numel() > size[0] * size[1]:
            level = _resize(level, size)
        hidden = F.relu(self.reduce_norm(_resize(self.reduce(level), size)))
        hidden = F.relu(self.mix_norm(self.mix(hidden)))
        hidden = self.expand_norm(self.expand(hidden))
        if isinstance(self.shortcut, nn.Sequential):
            projection, norm = self.shortcut
            shortcut = norm(_resize(projection(level), size))
        else:
            shortcut = _resize(level, size)
        return F.relu_(hidden + shortcut)


class AdaptiveAggregation(nn.Module):
    """Levels to one map: a bottleneck per level, summed by learned softmax branch weights.

    Levels go through their bottlenecks at the size of the map, as in the paper's section 4.2 and in
    the released code.

    Args:
        in_channels: Channels of every level.
        out_channels: Channels of the map.
        bottleneck_channels: Width inside a bottleneck; None means a quarter of ``out_channels``.
        norm_groups: Groups of the GroupNorms.
        normalize: L2-normalise every cell over channels.
        dropout: Probability with which a channel of a level is dropped while training.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 1280,
        bottleneck_channels: int | None = None,
        norm_groups: int = 32,
        normalize: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not in_channels:
            raise ValueError("in_channels must name at least one level, got none.")
        channels = bottleneck_channels or out_channels // 4
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        self.normalize = normalize
        self.bottlenecks = nn.ModuleList(
            Bottleneck(count, out_channels, channels, norm_groups) for count in in_channels
        )
        self.branch_logits = nn.Parameter(torch.zeros(len(in_channels)))
        self.dropout = nn.Dropout2d(dropout)

    @property
    def branch_weights(self) -> Tensor:
        """Weights of the levels, ``[levels]``, positive, summing to one."""
        return self.branch_logits.softmax(0)

    def reset_parameters(self) -> None:
        """Initialise anew: equal branch weights."""
        nn.init.zeros_(self.branch_logits)
        for bottleneck in self.bottlenecks:
            assert isinstance(bottleneck, Bottleneck)
            bottleneck.reset_parameters()

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Aggregate.

        Args:
            levels: One map ``[B, C, h, w]`` per entry of ``in_channels``, of any sizes.
            size: Rows and columns of the result.

        Returns:
            ``[B, out_channels, rows, columns]``.

        Raises:
            ValueError: The number of levels, or a level's channels, are not as declared.
        """
        got = tuple(level.shape[1] for level in levels)
        if got != self.in_channels:
            raise ValueError(
                f"expected levels with {self.in_channels} channels, got {got}. "
                "Give the levels in the order in which in_channels names them."
            )
        total: Tensor | None = None
        for weight, bottleneck, level in zip(
            self.branch_weights.unbind(), self.bottlenecks, levels, strict=True
        ):
            branch = bottleneck(self.dropout(level), size)
            total = weight * branch if total is None else torch.addcmul(total, weight, branch)
        assert total is not None
        if not self.normalize:
            return total
        # 1e-12, torch's own, is 0 in float16, and cells where every branch is 0 became NaN.
        return F.normalize(total, dim=1, eps=max(1e-12, torch.finfo(total.dtype).tiny))


class AdaptivePyramid(nn.Module):
    """Levels to one aggregated map per stride, for FPN-type consumers.

    Every stride has its own bottlenecks and branch weights.

    Args:
        in_channels: Channels of every level.
        strides: Strides of the maps, in the order in which they are returned.
        options: Passed to every `AdaptiveAggregation`.
    """

    def __init__(
        self, in_channels: Sequence[int], strides: Sequence[int] = (4, 8, 16, 32), **options: object
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.maps = nn.ModuleList(
            AdaptiveAggregation(in_channels, **options)  # type: ignore[arg-type]
            for _ in self.strides
        )

    def reset_parameters(self) -> None:
        """Initialise anew."""
        for aggregation in self.maps:
            assert isinstance(aggregation, AdaptiveAggregation)
            aggregation.reset_parameters()

    def forward(self, levels: Sequence[Tensor], image_size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Aggregate.

        Args:
            levels: One map per entry of ``in_channels``.
            image_size: Height and width of the image in pixels.

        Returns:
            ``[B, out_channels, ceil(H / stride), ceil(W / stride)]`` per stride.
        """
        return tuple(
            aggregation(levels, cells(image_size, stride))
            for stride, aggregation in zip(self.strides, self.maps, strict=True)
        )


def cells(image_size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of a map that covers an image at a stride."""
    height, width = image_size
    return -(-height // stride), -(-width // stride)


def _resize(grid: Tensor, size: tuple[int, int]) -> Tensor:
    if grid.shape[-2:] == size:
        return grid
    return F.interpolate(grid, size, mode="bilinear", align_corners=False)
