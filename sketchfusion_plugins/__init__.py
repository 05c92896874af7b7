"""SketchFusion: frozen Stable Diffusion and CLIP features, fused, for the frameworks you use.

Importing this package registers its models with timm, as soon as timm is imported too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sketchfusion_plugins.import_hooks import follow_import

if TYPE_CHECKING:
    from sketchfusion_plugins.adapter_file import CheckpointError
    from sketchfusion_plugins.config import EncoderConfig
    from sketchfusion_plugins.encoder import FeatureLevels, SketchFusionEncoder
    from sketchfusion_plugins.images import open_image, to_tensor
    from sketchfusion_plugins.presets import preset

__version__ = "0.1.0.dev0"

_MODULES = {
    "CheckpointError": "adapter_file",
    "EncoderConfig": "config",
    "FeatureLevels": "encoder",
    "SketchFusionEncoder": "encoder",
    "open_image": "images",
    "preset": "presets",
    "to_tensor": "images",
}

__all__ = [
    "CheckpointError",
    "EncoderConfig",
    "FeatureLevels",
    "SketchFusionEncoder",
    "__version__",
    "open_image",
    "preset",
    "to_tensor",
]

follow_import("timm", "timm_adapters")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
