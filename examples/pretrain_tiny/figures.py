"""Scores of items, their means with intervals, comparisons of rows, and tables of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.table import Table

from sketchfusion_plugins.evaluation.report import Measured

RESAMPLES = 5000
DIGITS = 5


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of N items, such as drawings.

    The figure is the mean over C classes of the items' summed ``top`` over their summed
    ``bottom``: an IoU from intersections and unions, a share of right points from counts, or a
    plain mean where ``bottom`` is one.

    Attributes:
        top: ``[N, C]``.
        bottom: ``[N, C]``.
        chance: What guessing, or the best constant answer, gives; None where that means nothing.
    """

    top: NDArray[np.float64]
    bottom: NDArray[np.float64]
    chance: float | None = None

    @classmethod
    def mean(cls, values: ArrayLike, chance: float | None = None) -> Scores:
        """Items ``[N]`` whose mean is the figure."""
        top = np.asarray(values, np.float64)[:, None]
        return cls(top, np.ones_like(top), chance)

    @classmethod
    def ratio(cls, top: ArrayLike, bottom: ArrayLike, chance: float | None = None) -> Scores:
        """Items ``[N]`` or ``[N, C]`` of sums."""
        parts = [np.asarray(part, np.float64) for part in (top, bottom)]
        first, second = (part[:, None] if part.ndim == 1 else part for part in parts)
        return cls(first, second, chance)

    def figures(self, weights: NDArray[Any]) -> NDArray[np.float64]:
        """The figure ``[R]`` for every weighting of the items, ``[R, N]``."""
        bottom = weights @ self.bottom
        # A class that no drawn item has does not count.
        shares = np.where(bottom > 0, (weights @ self.top) / np.maximum(bottom, 1e-12), np.nan)
        return np.asarray(np.nanmean(shares, 1))

    @property
    def figure(self) -> float:
        """Of the items as they are."""
        return float(self.figures(np.ones((1, len(self.top))))[0])

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        plain = bool((self.bottom == 1).all())
        return {
            "top": self.top.round(DIGITS).tolist(),
            "bottom": None if plain else self.bottom.round(DIGITS).tolist(),
            "chance": self.chance,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scores:
        """Inverse of `as_json`."""
        top = np.asarray(values["top"], np.float64)
        bottom = values["bottom"]
        kept = np.ones_like(top) if bottom is None else np.asarray(bottom, np.float64)
        return cls(top, kept, values["chance"])


@dataclass(frozen=True)
class Cell:
    """A figure: mean over seeds, interval over items, spread over seeds (None for one seed)."""

    measured: Measured
    spread: float | None

    @classmethod
    def of(cls, seeds: Sequence[Scores]) -> Cell:
        """Wilson's interval where a single seed's items are right or wrong, else a bootstrap.

        The bootstrap draws items and averages the figures of the seeds on what it drew.
        """
        first = seeds[0]
        if len(seeds) == 1 and first.top.shape[1] == 1 and bool((first.bottom == 1).all()):
            return cls(Measured.of(first.top[:, 0]), None)
        own = [scores.figure for scores in seeds]
        low, high = np.quantile(_resampled(seeds), (0.025, 0.975))
        measured = Measured(float(np.mean(own)), float(low), float(high), len(first.top))
        return cls(measured, float(np.std(own, ddof=1)) if len(seeds) > 1 else None)

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ±{self.spread:.3f}"
        return f"{self.measured}{spread}"


@dataclass(frozen=True)
class Comparison:
    """Whether one row is above another, by a paired bootstrap over items.

    Attributes:
        difference: Mean of the differences.
        low: Lower bound of their 95 % interval.
        high: Upper bound.
        seeds: Of how many of the first row's seeds, and out of how many, the figure is above the
            other row's mean.
    """

    difference: float
    low: float
    high: float
    seeds: tuple[int, int]

    @classmethod
    def of(cls, better: Sequence[Scores], worse: Sequence[Scores]) -> Comparison:
        """Compare two rows on the same items.

        Raises:
            ValueError: They were not measured on the same items.
        """
        if len({scores.top.shape for scores in (*better, *worse)}) > 1:
            raise ValueError(
                "rows to compare must be measured on the same items, got "
                f"{sorted({len(scores.top) for scores in (*better, *worse)})} of them."
            )
        other = float(np.mean([scores.figure for scores in worse]))
        own = [scores.figure for scores in better]
        low, high = np.quantile(_resampled(better) - _resampled(worse), (0.025, 0.975))
        above = (sum(figure > other for figure in own), len(own))
        return cls(float(np.mean(own)) - other, float(low), float(high), above)

    @property
    def verdict(self) -> str:
        """Established, not established, or contradicted."""
        if self.low > 0:
            return "established"
        return "contradicted" if self.high < 0 else "not established"

    def __str__(self) -> str:
        return (
            f"{self.verdict} {self.difference:+.3f} ({self.low:+.3f} to {self.high:+.3f}), "
            f"{self.seeds[0]}/{self.seeds[1]} seeds"
        )


Rows = Mapping[str, Mapping[str, Sequence[Scores]]]


@dataclass(frozen=True)
class Sheet:
    """One table: a title, heads of columns, and rows of text."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """GitHub's Markdown."""
        lines = (self.heads, ("---",) * len(self.heads), *self.rows)
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"### {self.title}\n\n{table}\n"

    def table(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title)
        for index, head in enumerate(self.heads):
            table.add_column(head, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        return table


def figures_sheet(title: str, columns: Sequence[str], rows: Rows) -> Sheet:
    """Rows by columns; n and chance are in the heads.

    Args:
        title: Title.
        columns: Names, in order; those that no row has are left out.
        rows: Scores of every seed, by row and column.
    """
    heads, kept = [title], []
    for column in columns:
        found = [row[column][0] for row in rows.values() if column in row]
        if found:
            chance = next((s.chance for s in found if s.chance is not None), None)
            given = "" if chance is None else f", chance {chance:.3f}"
            heads.append(f"{column} (n {len(found[0].top)}{given})")
            kept.append(column)
    lines = []
    for name, row in rows.items():
        cells = [str(Cell.of(row[column])) if column in row else "" for column in kept]
        if any(cells):
            lines.append((name, *cells))
    return Sheet(title, tuple(heads), tuple(lines))


def ordering_sheet(
    title: str, pairs: Sequence[tuple[str, str]], columns: Sequence[str], rows: Rows
) -> Sheet:
    """Verdicts for pairs of rows ``(better, worse)`` by column; pairs without figures are left out.

    Args:
        title: Title.
        pairs: Claims.
        columns: Names, in order.
        rows: Scores of every seed, by row and column.
    """
    there = [
        column
        for column in columns
        if any(column in rows.get(a, {}) and column in rows.get(b, {}) for a, b in pairs)
    ]
    lines = []
    for better, worse in pairs:
        cells = []
        for column in there:
            own, other = (rows.get(name, {}).get(column) for name in (better, worse))
            cells.append(str(Comparison.of(own, other)) if own and other else "")
        if any(cells):
            lines.append((f"{better} > {worse}", *cells))
    return Sheet(title, (title, *there), tuple(lines))


def _resampled(seeds: Sequence[Scores]) -> NDArray[np.float64]:
    """Mean over seeds of the figure, ``[RESAMPLES]``; the same items are drawn for all rows."""
    weights = _weights(len(seeds[0].top))
    return np.asarray(np.mean([scores.figures(weights) for scores in seeds], 0))


@lru_cache(maxsize=4)
def _weights(count: int) -> NDArray[np.float64]:
    """How often each of N items is drawn, ``[RESAMPLES, N]``."""
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return draws.astype(np.float64)
