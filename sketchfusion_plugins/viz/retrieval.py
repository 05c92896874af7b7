"""What was found for queries, right and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sketchfusion_plugins.viz.figures import (
    CELL_INCHES,
    LABEL_INCHES,
    LEGEND_INCHES,
    RIGHT,
    TITLE_INCHES,
    WRONG,
    add_cell,
    add_legend,
    add_row_label,
    checked_picture,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sketchfusion_plugins.viz.figures import Array

_FRAME_POINTS = 2.5
# Room for the frames between neighbouring cells.
_GAP_INCHES = 0.14


def retrieval_grid(
    queries: Sequence[Array],
    results: Sequence[Sequence[Array]],
    right: Sequence[Sequence[bool]] | None = None,
    row_labels: Sequence[str] | None = None,
) -> Figure:
    """Grid of pictures: a query per row and what was found for it, the best first.

    Frames are blue and solid around right results, vermilion and dashed around wrong ones.

    Args:
        queries: Q pictures [h, w, 3], uint8 or float in 0..1, arrays or tensors, of any sizes.
        results: Up to K pictures for every query; some may have fewer.
        right: Whether each of them is right; no frames by default.
        row_labels: Q texts for the left margin; no margin by default.

    Returns:
        Figure on white, 1.6 inches per cell.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: Numbers of queries, results and judgements disagree, or a picture has the wrong
            shape, type or range.
    """
    rows = len(queries)
    columns = max((len(found) for found in results), default=0)
    if not rows or not columns or len(results) != rows:
        raise ValueError(
            f"expected results for each of at least one query, got {len(results)} rows of up to "
            f"{columns} results for {rows} queries"
        )
    if right is not None and [len(row) for row in right] != [len(found) for found in results]:
        raise ValueError(
            f"right must judge every result: {[len(found) for found in results]} results by query, "
            f"{[len(row) for row in right]} judgements"
        )
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"{len(row_labels)} row labels for {rows} rows")
    margin = 0.0 if row_labels is None else LABEL_INCHES
    foot = 0.0 if right is None else LEGEND_INCHES
    figure = new_figure(
        (margin + (1 + columns) * CELL_INCHES, TITLE_INCHES + rows * CELL_INCHES + foot)
    )
    width, height = figure.get_size_inches()
    for column, title in enumerate(["query", *map(str, range(1, columns + 1))]):
        middle = margin + (column + 0.5) * CELL_INCHES
        figure.text(middle / width, 1 - TITLE_INCHES / 2 / height, title, ha="center", va="center")
    for row, query in enumerate(queries):
        bottom = foot + (rows - row - 1) * CELL_INCHES
        cell = checked_picture(f"query {row}", query)
        axes = add_cell(figure, cell, margin, bottom, _GAP_INCHES)
        if row_labels is not None:
            add_row_label(axes, row_labels[row])
        for rank, picture in enumerate(results[row]):
            cell = checked_picture(f"result {rank} of query {row}", picture)
            left = margin + (1 + rank) * CELL_INCHES
            axes = add_cell(figure, cell, left, bottom, _GAP_INCHES)
            if right is not None:
                style = RIGHT if right[row][rank] else WRONG
                # Projecting caps would close the gaps between dashes.
                axes.spines[:].set(linewidth=_FRAME_POINTS, capstyle="butt", **style)
    if right is not None:
        from matplotlib.lines import Line2D

        kinds = (("right", RIGHT), ("wrong", WRONG))
        add_legend(figure, [Line2D([], [], lw=_FRAME_POINTS, label=n, **s) for n, s in kinds])
    return figure
