"""timm models of SketchFusion; importing this package registers them."""

from timm_adapters.sketchfusion import (
    SketchFusion,
    sketchfusion_base,
    sketchfusion_small,
    sketchfusion_tiny,
)
from timm_adapters.tiny_vit import vit_tiny_conv16_128

__all__ = [
    "SketchFusion",
    "sketchfusion_base",
    "sketchfusion_small",
    "sketchfusion_tiny",
    "vit_tiny_conv16_128",
]
