"""The semantic tower of `sketchfusion_tiny`: a convolutional stem and a small transformer.

At 128 px, with hours rather than months of training, a stem of convolutions learns far faster than
patches of 16 x 16 pixels do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import HybridEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from sketchfusion_plugins.hub import BUNDLED_WEIGHTS, bundled_weights

NAME = "vit_tiny_conv16_128"
WEIGHTS = str(BUNDLED_WEIGHTS[NAME] / "model.safetensors")
# Channels and blocks of the stem's stages; every stage halves the grid, as does the first layer.
STAGES = ((64, 1), (128, 2), (192, 2))

default_cfgs = generate_default_cfgs(
    {
        f"{NAME}.open_pictures": {
            "file": WEIGHTS,
            # What CLIP trained it with, a projection to text's space, is left out.
            "num_classes": 0,
            "input_size": (3, 128, 128),
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "fixed_input_size": True,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "patch_embed.backbone.stem.conv",
            "classifier": "head",
            "license": "cc-by-sa-4.0",
        }
    }
)


@register_model
def vit_tiny_conv16_128(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Three transformer layers of width 192 on a stem of stride 16; 3.2 M parameters."""
    overlay = kwargs.get("pretrained_cfg_overlay")
    cfg = resolve_pretrained_cfg(NAME, kwargs.get("pretrained_cfg"), overlay)
    if pretrained and cfg.file == WEIGHTS:
        # Where the package's files are incomplete, the error says so; timm's says nothing.
        bundled_weights(NAME)
    stem = ByobNet(
        ByoModelCfg(
            blocks=tuple(
                ByoBlockCfg("basic", d=depth, c=channels, s=2, gs=0, br=1.0)
                for channels, depth in STAGES
            ),
            stem_type="3x3",
            stem_pool="",
            stem_chs=32,
        ),
        num_classes=0,
        global_pool="",
        in_chans=kwargs.get("in_chans", 3),
    )
    options = {
        "img_size": 128,
        "patch_size": 1,
        "embed_dim": 192,
        "depth": 3,
        "num_heads": 3,
        "class_token": False,
        "global_pool": "avg",
        # Tokens are normalised before they are pooled: single tokens are what is used later.
        "fc_norm": False,
        "embed_layer": partial(HybridEmbed, backbone=stem),
        **kwargs,
    }
    return build_model_with_cfg(
        VisionTransformer,
        NAME,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **options,
    )
