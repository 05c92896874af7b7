"""The linear head: what a frozen representation is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmengine.registry import MODELS
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor


@MODELS.register_module()
class LinearHead(BaseDecodeHead):  # type: ignore[misc]
    """Batch normalisation and a 1x1 convolution.

    Args:
        in_channels: Channels of the map, or of several that are resized to the first of them and
            concatenated.
        in_index: Index of the map, or of several.
        norm_cfg: Normalisation, ``dict(type="SyncBN")`` for several GPUs.
        dropout_ratio: Channel dropout.
        options: See `mmseg.models.decode_heads.decode_head.BaseDecodeHead`.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        in_index: int | Sequence[int] = 0,
        norm_cfg: dict[str, Any] | None = None,
        dropout_ratio: float = 0.0,
        **options: Any,
    ) -> None:
        several = not isinstance(in_channels, int)
        channels = sum(in_channels) if not isinstance(in_channels, int) else in_channels
        super().__init__(
            in_channels=in_channels,
            in_index=in_index,
            channels=channels,
            input_transform="resize_concat" if several else None,
            norm_cfg=norm_cfg or {"type": "BN"},
            dropout_ratio=dropout_ratio,
            **options,
        )
        self.norm = build_norm_layer(self.norm_cfg, channels, postfix="")[1]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits ``[B, classes, h, w]`` of maps ``[B, in_channels, h, w]``."""
        logits: Tensor = self.cls_seg(self.norm(self._transform_inputs(inputs)))
        return logits
