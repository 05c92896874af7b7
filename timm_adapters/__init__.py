"""timm models of SketchFusion; importing this package registers them."""

from timm_adapters.sketchfusion import SketchFusion
from timm_adapters.tiny_vit import vit_tiny_conv16_128
from timm_adapters.variants import sketchfusion_base, sketchfusion_small, sketchfusion_tiny

__all__ = [
    "SketchFusion",
    "sketchfusion_base",
    "sketchfusion_small",
    "sketchfusion_tiny",
    "vit_tiny_conv16_128",
]
