"""Adaptive aggregation as necks, for our backbone's levels or any other's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from sketchfusion_plugins.aggregation import cells
from sketchfusion_plugins.assembly import build_aggregator
from sketchfusion_plugins.config import AggregationConfig
from sketchfusion_plugins.frequency import BandGains


class _Neck(BaseModule):  # type: ignore[misc]
    """Checks levels, and rebalances their frequencies where asked to."""

    def __init__(
        self,
        in_channels: Sequence[int],
        in_stride: int,
        frequency_bands: int | None,
        init_cfg: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(init_cfg)
        if isinstance(in_channels, int) or not in_channels:
            raise ValueError(
                f"in_channels must list the channels of every level, fine to coarse, got "
                f"{in_channels!r}."
            )
        self.in_channels = tuple(in_channels)
        self.in_stride = in_stride
        self.calibration = nn.ModuleList()
        if frequency_bands is not None:
            self.calibration.extend(BandGains(count, frequency_bands) for count in in_channels)

    def calibrate(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Check levels and rebalance their frequencies.

        Raises:
            ValueError: The number of levels, or a level's channels, are not as declared.
        """
        got = tuple(level.shape[1] for level in levels)
        if got != self.in_channels:
            raise ValueError(
                f"{type(self).__name__} expects {len(self.in_channels)} level(s) with "
                f"{self.in_channels} channels, fine to coarse, got {len(got)} with {got}. "
                f"Set in_channels={list(got)} in the neck's config, or change what the backbone "
                "returns."
            )
        if not self.calibration:
            return list(levels)
        return [gains(level) for gains, level in zip(self.calibration, levels, strict=True)]

    def covered(self, levels: Sequence[Tensor]) -> tuple[int, int]:
        """Height and width in pixels that the finest level covers."""
        height, width = levels[0].shape[-2:]
        return height * self.in_stride, width * self.in_stride


@MODELS.register_module()
class AdaptiveAggregationNeck(_Neck):
    """Levels to one map by the paper's adaptive aggregation.

    Args:
        in_channels: Channels of every level, fine to coarse.
        out_channels: Channels of the map.
        in_stride: Stride of the finest level in pixels.
        out_stride: Stride of the map in pixels.
        bottleneck_channels: See `AdaptiveAggregation`.
        norm_groups: See `AdaptiveAggregation`.
        normalize: See `AdaptiveAggregation`.
        dropout: See `AdaptiveAggregation`.
        frequency_bands: Rebalance every level with learned gains for so many frequency bands and
            every channel (`BandGains`, the identity at the start); None for none.
        init_cfg: mmengine's initialisation.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        in_stride: int = 8,
        out_stride: int = 8,
        bottleneck_channels: int | None = None,
        norm_groups: int = 32,
        normalize: bool = False,
        dropout: float = 0.0,
        frequency_bands: int | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_channels, in_stride, frequency_bands, init_cfg)
        self.config = AggregationConfig(
            out_channels, out_stride, bottleneck_channels, norm_groups, normalize, dropout
        )
        self.out_stride = out_stride
        self.aggregation = build_aggregator(self.config, self.in_channels)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor]:
        """Aggregate.

        Args:
            inputs: Levels ``[B, in_channels[i], h, w]``, fine to coarse.

        Returns:
            One map ``[B, out_channels, rows, columns]`` of ``out_stride``.

        Raises:
            ValueError: The number of levels, or a level's channels, are not as declared.
        """
        levels = self.calibrate(inputs)
        return (self.aggregation(levels, cells(self.covered(levels), self.out_stride)),)


@MODELS.register_module()
class AdaptivePyramidNeck(_Neck):
    """Levels to a pyramid for FPN-type heads, every map an adaptive aggregation of its own.

    Args:
        in_channels: Channels of every level, fine to coarse.
        out_channels: Channels of every map.
        in_stride: Stride of the finest level in pixels.
        out_strides: Stride of every map in pixels, in the order in which they are returned.
        bottleneck_channels: See `AdaptiveAggregation`.
        norm_groups: See `AdaptiveAggregation`.
        normalize: See `AdaptiveAggregation`.
        dropout: See `AdaptiveAggregation`.
        frequency_bands: See `AdaptiveAggregationNeck`.
        init_cfg: mmengine's initialisation.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        in_stride: int = 8,
        out_strides: Sequence[int] = (4, 8, 16, 32),
        bottleneck_channels: int | None = None,
        norm_groups: int = 32,
        normalize: bool = False,
        dropout: float = 0.0,
        frequency_bands: int | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(in_channels, in_stride, frequency_bands, init_cfg)
        self.config = AggregationConfig(
            out_channels, tuple(out_strides), bottleneck_channels, norm_groups, normalize, dropout
        )
        self.pyramid = build_aggregator(self.config, self.in_channels)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Aggregate.

        Args:
            inputs: Levels ``[B, in_channels[i], h, w]``, fine to coarse.

        Returns:
            Map ``[B, out_channels, rows, columns]`` per stride.

        Raises:
            ValueError: The number of levels, or a level's channels, are not as declared.
        """
        levels = self.calibrate(inputs)
        maps: tuple[Tensor, ...] = self.pyramid(levels, self.covered(levels))
        return maps
