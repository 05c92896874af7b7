"""Feature maps as colours, and sheets of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sketchfusion_plugins.viz.figures import (
    CELL_INCHES,
    LABEL_INCHES,
    TITLE_INCHES,
    add_cell,
    add_row_label,
    add_title,
    as_numpy,
    checked_pictures,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sketchfusion_plugins.viz.figures import Array

# Below this share of the strongest component's spread, a component is rounding noise.
_NULL_SPREAD = 1e-5


def pca_rgb(features: Array) -> NDArray[np.float64]:
    """Show feature maps as colours: their first three principal components as red, green, blue.

    All maps of the batch share one basis and one scale, so equal colours mean similar features
    within and between images. Each component points to where its largest loading is positive, and
    is scaled so that its 2nd and 98th percentiles become 0 and 1. Components without variance
    (constant features, fewer than three channels) are 0.5: constant features give mid grey.

    Args:
        features: Feature maps [B, C, h, w], finite, array or tensor on any device.

    Returns:
        Colours [B, h, w, 3], 0..1.

    Raises:
        ValueError: ``features`` is not four-dimensional, is empty, or is not finite.
    """
    values = as_numpy(features).astype(np.float64)
    if values.ndim != 4 or values.size == 0:
        raise ValueError(f"features must be a non-empty [B, C, h, w], not {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError("features hold NaN or infinite values")
    batch, channels, height, width = values.shape
    pixels = values.transpose(0, 2, 3, 1).reshape(-1, channels)
    # Features come from float32 at best: variation below its resolution is not structure.
    resolution = 1e-6 * np.abs(pixels).max()
    pixels = pixels - pixels.mean(axis=0)
    scores = pixels @ _principal_axes(pixels)
    spread = scores.std(axis=0)
    colours = np.full((len(pixels), 3), 0.5)
    for component in range(scores.shape[1]):
        if spread[component] > max(resolution, _NULL_SPREAD * spread[0]):
            colours[:, component] = _to_unit_range(scores[:, component])
    return colours.reshape(batch, height, width, 3)


def feature_sheet(
    columns: Mapping[str, Array], row_labels: Sequence[str] | None = None, *, foot: float = 0.0
) -> Figure:
    """Grid of pictures: one row per image, one titled column per entry of ``columns``.

    Args:
        columns: Title to pictures [B, h, w, 3], uint8 or float in 0..1, array or tensor; B is the
            same for all, h and w may differ. Small maps keep sharp pixels.
        row_labels: B texts for the left margin; no margin by default.
        foot: Inches of white to leave below.

    Returns:
        Figure on white, 1.6 inches per cell.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: ``columns`` is empty, or an entry or ``row_labels`` has the wrong shape, type
            or range.
    """
    pictures = {title: checked_pictures(title, array) for title, array in columns.items()}
    lengths = {title: len(array) for title, array in pictures.items()}
    if not lengths or len(set(lengths.values())) != 1:
        raise ValueError(f"columns must hold equally many pictures, got {lengths}")
    rows = next(iter(lengths.values()))
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"{len(row_labels)} row labels for {rows} rows")
    margin = 0.0 if row_labels is None else LABEL_INCHES
    figure = new_figure(
        (margin + len(pictures) * CELL_INCHES, TITLE_INCHES + rows * CELL_INCHES + foot)
    )
    for column, (title, array) in enumerate(pictures.items()):
        for row in range(rows):
            left, bottom = margin + column * CELL_INCHES, foot + (rows - row - 1) * CELL_INCHES
            axes = add_cell(figure, array[row], left, bottom)
            if row == 0:
                add_title(axes, title)
            if column == 0 and row_labels is not None:
                add_row_label(axes, row_labels[row])
    return figure


def _principal_axes(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """First principal axes of centred ``pixels`` [N, C], as columns [C, min(3, N, C)]."""
    samples, channels = pixels.shape
    count = min(3, samples, channels)
    # Features often have more channels than a small map has pixels: decompose the smaller side.
    if channels <= samples:
        axes = np.linalg.eigh(pixels.T @ pixels).eigenvectors[:, ::-1][:, :count]
    else:
        squares, directions = np.linalg.eigh(pixels @ pixels.T)
        lengths = np.sqrt(np.clip(squares[::-1][:count], 0, None))
        # A null direction would be rounding noise blown up to length 1; zero shows as grey.
        valid = lengths > _NULL_SPREAD * lengths[0]
        inverse = np.divide(1, lengths, out=np.zeros_like(lengths), where=valid)
        axes = pixels.T @ directions[:, ::-1][:, :count] * inverse
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(count)]
    oriented: NDArray[np.float64] = axes * np.where(largest < 0, -1.0, 1.0)
    return oriented


def _to_unit_range(values: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.percentile(values, (2, 98))
    if not high > low:
        # Structure in fewer than 2 % of the pixels, such as a single spot.
        low, high = values.min(), values.max()
    scaled: NDArray[np.float64] = np.clip((values - low) / (high - low), 0, 1)
    return scaled
