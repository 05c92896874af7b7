"""mmseg, imported once, and a segmentor on small foundations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def mm_registries() -> Iterator[None]:
    """mmseg's modules registered, and its default scope left as it was."""
    pytest.importorskip("mmseg")
    from mmengine.registry import DefaultScope
    from mmseg.utils import register_all_modules

    import sketchfusion_plugins.mm  # noqa: F401

    register_all_modules(init_default_scope=False)
    scopes = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


@pytest.fixture
def segmentor_config(config: Any) -> Callable[..., dict[str, Any]]:
    """Config of an mmseg segmentor: our backbone on the small folders, a pyramid, an FPN head."""

    def make(backbone: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        return {
            "type": "mmseg.EncoderDecoder",
            "data_preprocessor": {
                "type": "mmseg.SegDataPreProcessor",
                "mean": [127.5] * 3,
                "std": [127.5] * 3,
                "bgr_to_rgb": True,
                "pad_val": 1,
                "seg_pad_val": 255,
                "size": (64, 64),
            },
            "backbone": {"type": "SketchFusion", "config": config.to_dict(), **(backbone or {})},
            "neck": {
                "type": "AdaptivePyramidNeck",
                "in_channels": [64, 64, 64],
                "out_channels": 32,
                "norm_groups": 8,
                "frequency_bands": 3,
            },
            "decode_head": {
                "type": "mmseg.FPNHead",
                "in_channels": [32] * 4,
                "in_index": [0, 1, 2, 3],
                "feature_strides": [4, 8, 16, 32],
                "channels": 16,
                "num_classes": 4,
                "dropout_ratio": 0.0,
                "norm_cfg": {"type": "GN", "num_groups": 4},
                "align_corners": False,
            },
            "test_cfg": {"mode": "whole"},
            **changes,
        }

    return make
