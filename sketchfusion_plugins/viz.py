"""Figures from arrays. Knows nothing of models and keeps no global plotting state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sketchfusion_plugins.files import replacing

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    Array: TypeAlias = NDArray[Any] | torch.Tensor

_SUFFIXES = (".png", ".svg")
_CELL_INCHES = 1.6
_LABEL_INCHES = 1.1
_TITLE_INCHES = 0.3
_GAP_INCHES = 0.06
_MATCH_INCHES = 4.0
_DPI = 150
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
    values = _as_numpy(features).astype(np.float64)
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


def feature_sheet(columns: Mapping[str, Array], row_labels: Sequence[str] | None = None) -> Figure:
    """Grid of pictures: one row per image, one titled column per entry of ``columns``.

    Args:
        columns: Title to pictures [B, h, w, 3], uint8 or float in 0..1, array or tensor; B is the
            same for all, h and w may differ. Small maps keep sharp pixels.
        row_labels: B texts for the left margin; no margin by default.

    Returns:
        Figure on white, 1.6 inches per cell.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: ``columns`` is empty, or an entry or ``row_labels`` has the wrong shape, type
            or range.
    """
    pictures = {title: _checked_pictures(title, array) for title, array in columns.items()}
    lengths = {title: len(array) for title, array in pictures.items()}
    if not lengths or len(set(lengths.values())) != 1:
        raise ValueError(f"columns must hold equally many pictures, got {lengths}")
    row_count = next(iter(lengths.values()))
    if row_labels is not None and len(row_labels) != row_count:
        raise ValueError(f"{len(row_labels)} row labels for {row_count} rows")
    margin = 0.0 if row_labels is None else _LABEL_INCHES
    width = margin + len(pictures) * _CELL_INCHES
    height = _TITLE_INCHES + row_count * _CELL_INCHES
    figure = _new_figure((width, height))
    for column, (title, array) in enumerate(pictures.items()):
        for row in range(row_count):
            bottom = (row_count - row - 1) * _CELL_INCHES
            axes = figure.add_axes(
                (
                    (margin + column * _CELL_INCHES + _GAP_INCHES / 2) / width,
                    (bottom + _GAP_INCHES / 2) / height,
                    (_CELL_INCHES - _GAP_INCHES) / width,
                    (_CELL_INCHES - _GAP_INCHES) / height,
                )
            )
            axes.imshow(array[row], interpolation=_interpolation(array), vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            # A thin frame, because a drawing on white would have no visible border.
            axes.spines[:].set(color="0.8", linewidth=0.5)
            if row == 0:
                axes.set_title(title, fontsize=11, pad=4)
            if column == 0 and row_labels is not None:
                axes.set_ylabel(
                    row_labels[row], rotation=0, ha="right", va="center", fontsize=9, labelpad=4
                )
    return figure


def draw_matches(
    source: Array, target: Array, source_points: Array, target_points: Array
) -> Figure:
    """Two pictures side by side, with lines between matched points.

    Args:
        source: Picture [h, w, 3], uint8 or float in 0..1, array or tensor.
        target: The same, of any size.
        source_points: [N, 2] as (x, y) in pixels of ``source``; the first pixel's centre is
            (0.5, 0.5).
        target_points: [N, 2] in pixels of ``target``.

    Returns:
        Figure on white, 4 inches high.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: Pictures or points have the wrong shape, type or range.
    """
    pictures = [
        _checked_pictures(title, _as_numpy(picture)[None])[0]
        for title, picture in (("source", source), ("target", target))
    ]
    points = [_as_numpy(found).astype(np.float64) for found in (source_points, target_points)]
    if points[0].shape != points[1].shape or points[0].ndim != 2 or points[0].shape[1] != 2:
        shapes = " and ".join(str(list(found.shape)) for found in points)
        raise ValueError(f"points must be [N, 2] in both pictures, not {shapes}")
    ratios = [picture.shape[1] / picture.shape[0] for picture in pictures]
    figure = _new_figure((_MATCH_INCHES * sum(ratios), _MATCH_INCHES))
    from matplotlib import colormaps
    from matplotlib.patches import ConnectionPatch

    left, right = figure.subplots(1, 2, width_ratios=ratios)
    figure.subplots_adjust(0, 0, 1, 1, wspace=0)
    colours = colormaps["turbo"](np.linspace(0.1, 0.9, len(points[0])))
    for axes, picture, found in zip((left, right), pictures, points, strict=True):
        height, width = picture.shape[:2]
        # matplotlib would put the first pixel's centre at (0, 0).
        axes.imshow(picture, extent=(0, width, height, 0), vmin=0, vmax=1)
        axes.scatter(*found.T, c=colours, s=18, zorder=3)
        axes.set_axis_off()
    for start, end, colour in zip(*points, colours, strict=True):
        line = ConnectionPatch(
            end, start, "data", "data", axesA=right, axesB=left, color=colour, linewidth=1
        )
        figure.add_artist(line)
    return figure


def overlay_mask(picture: Array, mask: Array) -> NDArray[np.uint8]:
    """A picture with a part tinted red.

    Args:
        picture: [h, w, 3], uint8 or float in 0..1, array or tensor.
        mask: bool [h, w].

    Returns:
        [h, w, 3].

    Raises:
        ValueError: Shapes, types or range are wrong.
    """
    pixels = _checked_pictures("picture", _as_numpy(picture)[None])[0]
    inside = _as_numpy(mask)
    if inside.shape != pixels.shape[:2] or inside.dtype != np.bool_:
        raise ValueError(
            f"mask must be bool {list(pixels.shape[:2])}, not {inside.dtype} {list(inside.shape)}"
        )
    values = pixels if pixels.dtype == np.uint8 else (255 * pixels).round()
    tinted = values * 0.5 + np.array([255.0, 0.0, 0.0]) * 0.5
    result: NDArray[np.uint8] = np.where(inside[..., None], tinted.round(), values).astype(np.uint8)
    return result


def save_figure(figure: Figure, path: str | Path, dpi: int = _DPI) -> None:
    """Write a figure so that ``path`` is never half written; missing folders are made.

    Args:
        figure: Matplotlib figure.
        path: Target; its suffix chooses the format, ``.png`` or ``.svg``.
        dpi: Dots per inch of pixels.

    Raises:
        ValueError: The suffix is another one.
        OSError: The target cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"cannot write {path.name!r}, valid suffixes: {', '.join(_SUFFIXES)}")
    from matplotlib import rc_context

    # Without a date and with fixed ids, the same figure gives the same SVG: no noise in diffs.
    metadata = {"Date": None} if suffix == ".svg" else None
    with replacing(path) as temporary, rc_context({"svg.hashsalt": "sketchfusion"}):
        figure.savefig(temporary, format=suffix[1:], dpi=dpi, metadata=metadata)


def _new_figure(inches: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'matplotlib is needed to draw figures: pip install "sketchfusion-plugins[demo]"'
        ) from error
    return Figure(figsize=inches, dpi=_DPI, facecolor="white")


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


def _checked_pictures(title: str, array: Array) -> NDArray[Any]:
    pictures = _as_numpy(array)
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.size == 0:
        raise ValueError(f"{title!r} must be [B, h, w, 3], not {list(pictures.shape)}")
    if pictures.dtype == np.uint8:
        return pictures
    if not np.issubdtype(pictures.dtype, np.floating):
        raise ValueError(f"{title!r} must be uint8 or float, not {pictures.dtype}")
    if not (pictures.min() >= 0 and pictures.max() <= 1):
        raise ValueError(f"{title!r} holds values outside 0..1 or NaN")
    return pictures


def _interpolation(pictures: NDArray[Any]) -> str:
    """Nearest when pixels are enlarged; a drawing that is shrunk would lose lines that way."""
    return "nearest" if max(pictures.shape[1:3]) <= _CELL_INCHES * _DPI else "antialiased"


def _as_numpy(array: Array) -> NDArray[Any]:
    if isinstance(array, np.ndarray):
        return array
    tensor = array.detach().cpu()
    # NumPy has no bfloat16.
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
