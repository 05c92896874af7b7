"""Figures from arrays. Knows nothing of models and keeps no global plotting state."""

from sketchfusion_plugins.viz.curves import draw_branch_weights, draw_spectra, draw_training
from sketchfusion_plugins.viz.features import feature_sheet, pca_rgb
from sketchfusion_plugins.viz.figures import save_figure
from sketchfusion_plugins.viz.masks import draw_segmentation, overlay_mask
from sketchfusion_plugins.viz.matches import draw_matches
from sketchfusion_plugins.viz.retrieval import retrieval_grid

__all__ = [
    "draw_branch_weights",
    "draw_matches",
    "draw_segmentation",
    "draw_spectra",
    "draw_training",
    "feature_sheet",
    "overlay_mask",
    "pca_rgb",
    "retrieval_grid",
    "save_figure",
]
