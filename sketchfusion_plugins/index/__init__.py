"""Gallery of embeddings on disk: a folder that one process extends while others search it."""

from sketchfusion_plugins.index.reader import Hit, SketchIndex
from sketchfusion_plugins.index.writer import IndexWriter

__all__ = ["Hit", "IndexWriter", "SketchIndex"]
