"""What all figures share: paper, colours, cells with pictures, and how they are saved."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sketchfusion_plugins.files import replacing

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Array: TypeAlias = NDArray[Any] | torch.Tensor

SUFFIXES = (".png", ".svg")
DPI = 150
CELL_INCHES = 1.6
GAP_INCHES = 0.06
TITLE_INCHES = 0.3
LABEL_INCHES = 1.1
LEGEND_INCHES = 0.4
# Okabe and Ito, "Color Universal Design" (2008), without black: told apart by all kinds of sight.
BLUE, VERMILION, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW = "#E69F00", "#56B4E9", "#F0E442"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION, YELLOW)
# Right and wrong differ in line style too, for print without colour.
RIGHT: dict[str, Any] = {"color": BLUE, "linestyle": "solid"}
WRONG: dict[str, Any] = {"color": VERMILION, "linestyle": (0, (3, 2))}
_LABEL_LETTERS = 15
# Width of a letter as a share of the font's size, roughly.
_LETTER = 0.58


def check_figure(path: str | Path | None) -> None:
    """Refuse what `save_figure` could not write, before anything is computed.

    Args:
        path: Target; None if none is wanted.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: The suffix is not one of `SUFFIXES`.
    """
    if path is not None:
        _checked_suffix(Path(path))
        _figure_class()


def save_figure(figure: Figure, path: str | Path, dpi: int = DPI) -> None:
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
    suffix = _checked_suffix(path)
    from matplotlib import rc_context

    # Without a date and with fixed ids, the same figure gives the same SVG: no noise in diffs.
    metadata = {"Date": None} if suffix == ".svg" else None
    with replacing(path) as temporary, rc_context({"svg.hashsalt": "sketchfusion"}):
        figure.savefig(temporary, format=suffix[1:], dpi=dpi, metadata=metadata)


def new_figure(inches: tuple[float, float], **options: Any) -> Figure:
    """An empty figure on white, without pyplot.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    return _figure_class()(figsize=inches, dpi=DPI, facecolor="white", **options)


def add_cell(
    figure: Figure, picture: NDArray[Any], left: float, bottom: float, gap: float = GAP_INCHES
) -> Axes:
    """Put a picture into a square cell, its lower left corner given in inches.

    The frame is the picture's own, also where it is not square.
    """
    width, height = figure.get_size_inches()
    side = CELL_INCHES - gap
    axes = figure.add_axes(
        ((left + gap / 2) / width, (bottom + gap / 2) / height, side / width, side / height)
    )
    axes.imshow(picture, interpolation=_interpolation(picture), vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    # A thin frame, because a drawing on white would have no visible border.
    axes.spines[:].set(color="0.8", linewidth=0.5)
    return axes


def add_title(axes: Axes, title: str) -> None:
    """A title as wide as its cell at most."""
    fitting = (CELL_INCHES - GAP_INCHES) * 72 / (_LETTER * max(1, len(title)))
    # A name with dollars is a name, not a formula.
    axes.set_title(title, fontsize=min(11.0, fitting), pad=4, parse_math=False)


def add_row_label(axes: Axes, label: str) -> None:
    """A label in the left margin, on several lines where it is long."""
    axes.set_ylabel(
        textwrap.fill(label, _LABEL_LETTERS),
        rotation=0,
        ha="right",
        va="center",
        fontsize=9,
        labelpad=4,
        parse_math=False,
    )


def add_legend(figure: Figure, handles: Sequence[Any], columns: int | None = None) -> None:
    """A legend without frame along the figure's foot."""
    legend = figure.legend(
        handles=list(handles),
        loc="lower center",
        ncols=columns or len(handles),
        frameon=False,
        fontsize=9,
        borderaxespad=0.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def as_numpy(array: Array) -> NDArray[Any]:
    """An array or a tensor of any device and precision as an array."""
    if isinstance(array, np.ndarray):
        return array
    tensor = array.detach().cpu()
    # NumPy has no bfloat16.
    values: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return values


def checked_pictures(title: str, array: Array) -> NDArray[Any]:
    """Pictures ``[B, h, w, 3]``, uint8 or float in 0..1.

    Raises:
        ValueError: They are not.
    """
    pictures = as_numpy(array)
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.size == 0:
        raise ValueError(f"{title!r} must be [B, h, w, 3], not {list(pictures.shape)}")
    if pictures.dtype == np.uint8:
        return pictures
    if not np.issubdtype(pictures.dtype, np.floating):
        raise ValueError(f"{title!r} must be uint8 or float, not {pictures.dtype}")
    if not (pictures.min() >= 0 and pictures.max() <= 1):
        raise ValueError(f"{title!r} holds values outside 0..1 or NaN")
    return pictures


def checked_picture(title: str, array: Array) -> NDArray[Any]:
    """One picture ``[h, w, 3]``; see `checked_pictures`."""
    picture = as_numpy(array)
    if picture.ndim != 3:
        raise ValueError(f"{title!r} must be [h, w, 3], not {list(picture.shape)}")
    checked: NDArray[Any] = checked_pictures(title, picture[None])[0]
    return checked


def _checked_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"cannot write {path.name!r}, valid suffixes: {', '.join(SUFFIXES)}")
    return suffix


def _figure_class() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'matplotlib is needed to draw figures: pip install "sketchfusion-plugins[quickstart]"'
        ) from error
    return Figure


def _interpolation(picture: NDArray[Any]) -> str:
    """Nearest when pixels are enlarged; a drawing that is shrunk would lose lines that way."""
    return "nearest" if max(picture.shape[:2]) <= CELL_INCHES * DPI else "antialiased"
