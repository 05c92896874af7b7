"""What frozen parts compute, kept on disk: `FeatureStore`, and encoders that use one."""

from sketchfusion_plugins.cache.encoder import CachedEncoder, use_cache
from sketchfusion_plugins.cache.store import FeatureStore

__all__ = ["CachedEncoder", "FeatureStore", "use_cache"]
