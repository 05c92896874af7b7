"""timm models of SketchFusion; importing this package registers them."""

from timm_adapters.sketchfusion import (
    SketchFusion,
    sketchfusion_base,
    sketchfusion_small,
    sketchfusion_tiny,
)

__all__ = ["SketchFusion", "sketchfusion_base", "sketchfusion_small", "sketchfusion_tiny"]
