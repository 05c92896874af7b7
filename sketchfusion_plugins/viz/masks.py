"""Masks and segmentations over their pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sketchfusion_plugins.viz.features import feature_sheet
from sketchfusion_plugins.viz.figures import (
    CELL_INCHES,
    LABEL_INCHES,
    LEGEND_INCHES,
    PALETTE,
    add_legend,
    as_numpy,
    checked_picture,
    checked_pictures,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sketchfusion_plugins.viz.figures import Array

TINT = 0.65
OTHER = "#999999"
_LEGEND_INCHES_PER_LETTER = 0.075


def draw_segmentation(
    pictures: Array,
    labellings: Mapping[str, Array],
    names: Sequence[str],
    *,
    ignored: Collection[int] = (255,),
    row_labels: Sequence[str] | None = None,
) -> Figure:
    """Pictures beside their segmentations, each class in a colour that the legend names.

    Colours go to the seven classes with the most pixels; what is left is grey, "other". They are
    Okabe and Ito's, which all kinds of colour vision tell apart.

    Args:
        pictures: [B, h, w, 3], uint8 or float in 0..1.
        labellings: Title, such as "truth", to classes [B, h, w], integers.
        names: Names of the classes 0, 1, ...
        ignored: Classes that stay as they are in the picture, such as a background, and are not in
            the legend.
        row_labels: B texts for the left margin; no margin by default.

    Returns:
        Figure on white, 1.6 inches per cell, with the legend below.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: Shapes, types or range are wrong, or a class has no name.
    """
    pixels = checked_pictures("pictures", pictures)
    if not labellings:
        raise ValueError("labellings is empty; give at least one, such as {'predicted': classes}")
    classes = {title: _checked_classes(title, own, pixels) for title, own in labellings.items()}
    found, counts = np.unique(np.stack(list(classes.values())), return_counts=True)
    shown = ~np.isin(found, list(ignored))
    found, counts = found[shown], counts[shown]
    nameless = found[(found < 0) | (found >= len(names))]
    if len(nameless):
        raise ValueError(
            f"class {nameless[0]} has no name: there are {len(names)}. Name it, or list it in "
            "ignored."
        )
    # A stable sort: classes of equal size keep their order.
    largest = np.sort(found[np.argsort(-counts, kind="stable")][: len(PALETTE)])
    colours = {int(number): colour for number, colour in zip(largest, PALETTE, strict=False)}
    entries = [(names[number], colour) for number, colour in colours.items()]
    rest = [int(number) for number in found if number not in largest]
    if rest:
        colours |= dict.fromkeys(rest, OTHER)
        entries.append((f"other ({len(rest)} classes)", OTHER))
    columns: dict[str, Any] = {"picture": pixels}
    for title, own in classes.items():
        columns[title] = _tinted(pixels, own, colours)
    margin = 0.0 if row_labels is None else LABEL_INCHES
    width = margin + len(columns) * CELL_INCHES
    longest = max((len(name) for name, _ in entries), default=0)
    per_row = max(1, int(width / (0.5 + _LEGEND_INCHES_PER_LETTER * longest)))
    lines = -(-len(entries) // per_row)
    figure = feature_sheet(columns, row_labels, foot=LEGEND_INCHES * (1 + lines) / 2)
    if entries:
        from matplotlib.patches import Patch

        # As tinted on white.
        handles = [Patch(facecolor=colour, alpha=TINT, label=name) for name, colour in entries]
        add_legend(figure, handles, min(per_row, len(handles)))
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
    pixels = checked_picture("picture", picture)
    inside = as_numpy(mask)
    if inside.shape != pixels.shape[:2] or inside.dtype != np.bool_:
        raise ValueError(
            f"mask must be bool {list(pixels.shape[:2])}, not {inside.dtype} {list(inside.shape)}"
        )
    values = pixels if pixels.dtype == np.uint8 else (255 * pixels).round()
    tinted = values * 0.5 + np.array([255.0, 0.0, 0.0]) * 0.5
    result: NDArray[np.uint8] = np.where(inside[..., None], tinted.round(), values).astype(np.uint8)
    return result


def _checked_classes(title: str, labelling: Array, pictures: NDArray[Any]) -> NDArray[np.int64]:
    classes = as_numpy(labelling)
    if classes.shape != pictures.shape[:3] or not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(
            f"{title!r} must be integers {list(pictures.shape[:3])}, not {classes.dtype} "
            f"{list(classes.shape)}"
        )
    return classes.astype(np.int64)


def _tinted(
    pictures: NDArray[Any], classes: NDArray[np.int64], colours: Mapping[int, str]
) -> NDArray[np.float64]:
    from matplotlib.colors import to_rgb

    values = pictures / 255.0 if pictures.dtype == np.uint8 else pictures.astype(np.float64)
    tinted = values.copy()
    for number, colour in colours.items():
        inside = classes == number
        # The picture's own colours would mix with the tint to others than the legend's.
        grey = values[inside].mean(-1, keepdims=True)
        tinted[inside] = (1 - TINT) * grey + TINT * np.array(to_rgb(colour))
    # Rounding may leave 0..1 by a hair.
    clipped: NDArray[np.float64] = np.clip(tinted, 0.0, 1.0)
    return clipped
