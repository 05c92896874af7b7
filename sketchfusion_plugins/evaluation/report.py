"""What was measured: means with intervals, as a table, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from sketchfusion_plugins.files import write_text
from sketchfusion_plugins.metrics.intervals import (
    Interval,
    bootstrap_mean,
    check_weights,
    wilson,
)

if TYPE_CHECKING:
    from rich.table import Table


# Between means that are the same but for the order of their sums.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Measured:
    """A mean over items.

    Attributes:
        value: The mean, 0..1.
        low: Lower bound of its 95 % interval.
        high: Upper bound.
        count: Items.
    """

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(
        cls,
        values: ArrayLike,
        weights: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Measured:
        """Mean of items ``[N]``, 0..1, by their weights ``[N]`` if there are any.

        The interval is Wilson's where every item is right or wrong and all weigh the same, else a
        percentile bootstrap with 10,000 resamples and a fixed seed, of whole groups where items
        have some; and Wilson's where that would leave none of groups, or of items that are right
        or wrong. One item or group alone leaves it at 0 to 1. It covers the choice of items alone,
        not that of a training run's seed.

        Args:
            values: What was measured.
            weights: Weights of the items.
            groups: Group of every item ``[N]``: those of one, such as sketches of the same photo,
                are not independent. None where all are.

        Raises:
            ValueError: No items, or weights that are not one finite number above 0 for each.
        """
        items = np.asarray(values, dtype=np.float64)
        if not len(items):
            raise ValueError("expected at least one judged item, got none.")
        weighing = None if weights is None else check_weights(weights, len(items))
        if weighing is not None and (weighing == weighing[0]).all():
            weighing = None
        mean = float(np.average(items, weights=weighing))
        independent = len(items) if groups is None else len(np.unique(np.asarray(groups)))
        if independent == len(items):
            groups = None
        if weighing is None and groups is None and np.isin(items, (0.0, 1.0)).all():
            interval = wilson(mean, independent)
        elif independent == 1:
            interval = Interval(0.0, 1.0)
        else:
            interval = bootstrap_mean(items, groups, weighing)
            certain = np.isin(items, (0.0, 1.0)).all() or groups is not None
            if certain and interval.high - interval.low < ROUNDING:
                # Items or groups of one mean, such as few that are all right, leave no interval.
                interval = wilson(mean, independent)
        # Rounding must not put the mean outside of its interval.
        return cls(mean, min(interval.low, mean), max(interval.high, mean), len(items))

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


Row = dict[str, Measured]
# What tells one measurement of a model from another; JSON values.
Identity = dict[str, Any]


@dataclass
class Report:
    """Measures of several models on the same data.

    Attributes:
        task: Name of the task.
        source: Where the data came from.
        about: What else one must know of the data, for all models: sizes, split, formulas.
        rows: Measures by name, by model.
        identities: What else one must know of a model to measure it again, by model: weights,
            precision, versions. Nothing where it is left out.
    """

    task: str
    source: str
    about: dict[str, Any]
    rows: dict[str, Row] = field(default_factory=dict)
    identities: dict[str, Identity] = field(default_factory=dict)

    @property
    def measures(self) -> Sequence[str]:
        """Names of the measures."""
        return list(dict.fromkeys(name for row in self.rows.values() for name in row))

    def markdown(self) -> str:
        """A table with intervals, and what it was measured on."""
        names = self.measures
        lines = [f"| {self.task}, {self.source} | " + " | ".join(names) + " |"]
        lines.append("|---" * (len(names) + 1) + "|")
        for model, row in self.rows.items():
            cells = (str(row[name]) if name in row else "" for name in names)
            name = model.replace("|", "\\|")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines += ["", f"95 % intervals in brackets; {_listed(self.about)}."]
        return "\n".join([*lines, *(f"\n{line}" for line in self._measured_as())]) + "\n"

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "task": self.task,
            "source": self.source,
            "about": self.about,
            "identities": {model: self.identities.get(model, {}) for model in self.rows},
            "rows": {
                model: {name: vars(measured) for name, measured in row.items()}
                for model, row in self.rows.items()
            },
        }

    def table(self) -> Table:
        """A table for the terminal."""
        from rich.table import Table
        from rich.text import Text

        # Folders' names may hold rich's markup.
        caption = Text("\n".join([_listed(self.about), *self._measured_as()]))
        table = Table(title=Text(f"{self.task}, {self.source}"), caption=caption)
        table.add_column("model", overflow="fold")
        for name in self.measures:
            table.add_column(name, justify="right")
        for model, row in self.rows.items():
            table.add_row(Text(model), *(str(row.get(name, "")) for name in self.measures))
        return table

    def _measured_as(self) -> list[str]:
        """Identities, each with the models that share it."""
        models: dict[str, list[str]] = {}
        for model in self.rows:
            if self.identities.get(model):
                models.setdefault(_listed(self.identities[model]), []).append(model)
        return [f"{', '.join(names)}: {identity}." for identity, names in models.items()]

    def write(self, folder: Path) -> None:
        """Write ``TASK.json`` and ``TASK.md`` to a folder, atomically.

        Raises:
            OSError: The folder cannot be written.
        """
        write_text(json.dumps(self.as_json(), indent=1) + "\n", folder / f"{self.task}.json")
        write_text(self.markdown(), folder / f"{self.task}.md")


def read_report(path: Path, expected: Report) -> Report:
    """A report that `Report.write` wrote, if it is on the same data as another.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no report, one of an earlier form, or on other data.
    """
    advice = "Choose another folder, or delete it."
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        report = Report(
            found["task"],
            found["source"],
            dict(found["about"]),
            {
                model: {name: Measured(**measured) for name, measured in row.items()}
                for model, row in found["rows"].items()
            },
        )
        early = "identities" not in found
        if not early:
            report.identities = {model: dict(found["identities"][model]) for model in report.rows}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no report of ours: {error!r}. {advice}") from error
    if early:
        raise ValueError(
            f"{path} is of an earlier version and does not say how each row was measured. {advice}"
        )
    got, asked = (
        {"task": one.task, "source": one.source, **one.about} for one in (report, expected)
    )
    differing = [name for name in {**asked, **got} if got.get(name) != asked.get(name)]
    if "files" not in got and "files" in differing:
        # Reports of earlier versions do not say.
        differing.remove("files")
    if differing:
        first, second = (
            ", ".join(f"{name} {values.get(name)}" for name in differing) for values in (got, asked)
        )
        raise ValueError(f"{path} reports on {first}, expected {second}. {advice}")
    return report


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
