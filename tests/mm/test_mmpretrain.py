"""mmpretrain's own wrapper of timm models, and our backbone inside its classifier."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("mmseg")
pytest.importorskip("mmpretrain")

import timm
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample


def test_timm_wrapper_builds_our_model(sketches: Any) -> None:
    wrapped = MODELS.build(
        {"type": "TIMMBackbone", "model_name": "sketchfusion_tiny", "pretrained": False}
    )
    # mmpretrain's backbones do not return themselves.
    wrapped.eval()
    levels = wrapped(sketches(2, 64, 96))
    plain = timm.create_model("sketchfusion_tiny", num_classes=0, global_pool="").eval()
    plain.load_state_dict(wrapped.timm_model.state_dict())
    assert len(levels) == 1
    torch.testing.assert_close(levels[0], plain(sketches(2, 64, 96)), atol=0, rtol=0)


def test_backbone_in_a_classifier_trains_adapters(config: Any, sketches: Any) -> None:
    model = MODELS.build(
        {
            "type": "ImageClassifier",
            "backbone": {"type": "SketchFusion", "config": config.replace(taps=("up2",)).to_dict()},
            "neck": {"type": "GlobalAveragePooling"},
            "head": {"type": "LinearClsHead", "num_classes": 5, "in_channels": 64},
        }
    ).train()
    samples = [DataSample().set_gt_label(index) for index in (1, 3)]
    sum(model.loss(sketches(2), samples).values()).backward()
    assert all(
        (parameter.grad is not None) == parameter.requires_grad
        for parameter in model.backbone.parameters()
    )
    assert not any(".diffusion." in name for name in model.state_dict())
