"""The table: every row on every task, held-out concepts and drawings only, with intervals.

python examples/pretrain_tiny/evaluate.py --work DIR --quickdraw DIR --spg DIR --out DIR

Each row, seed and group of columns is written to ``OUT/<row>-<seed>.json`` as soon as it is
measured and not measured again, unless the row's weights have changed. Trained rows whose training
has not finished are left out and named; those that trained for other numbers of steps are refused.
``OUT/table.md`` is the table so far.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import RESAMPLES, Rows, Scores, Sheet, figures_sheet, ordering_sheet
from judged_data import JudgedData
from judged_model import JudgedModel
from judged_sketches import SPG_DRAWINGS
from measures import GROUPS, neighbours
from rich.console import Console
from table_rows import (
    ENLARGED,
    NEIGHBOURS,
    ROWS,
    SHIPPED,
    TRAINED,
    fingerprint,
    row_features,
    weights_folder,
)
from trained_alike import require_as_many_steps, trained_steps

from sketchfusion_plugins.files import write_text

# Raised when a measure changes, so that older figures are not taken for new ones.
PROTOCOL = 3
CLAIMS = (
    ("fused", "SD + CLIP + adapters"),
    ("SD + CLIP + adapters", "SD + adapters"),
    ("SD + CLIP + adapters", "CLIP + adapters"),
    ("fused", "SD + adapters"),
    ("fused", "CLIP + adapters"),
    ("fused", "fused, random foundations"),
    ("fused", "SD + CLIP"),
    ("fused", "CLIP"),
    ("SD + CLIP + adapters", "SD + CLIP"),
    ("SD + adapters", "SD"),
    ("CLIP + adapters", "CLIP"),
    ("SD + CLIP", "SD"),
    ("SD + CLIP", "CLIP"),
    ("fused", "HOG"),
    ("fused", "HOG, 4x4"),
    *((shipped, other) for shipped in SHIPPED for other in ("HOG, 4x4", "CLIP", "SD + CLIP")),
    *((large, row) for large, row in ENLARGED.items()),
)
NOTE = """\
Held-out concepts, one of each family, randomly warped; probes, thresholds and means come from
seen concepts and drawings. 95 % intervals over items: Wilson's where one seed's items are right or
wrong, else a bootstrap of 10,000 resamples (ratios and differences: {resamples}); ± is the standard
deviation over seeds. A claim is established where the interval of the paired difference lies above
0, contradicted where it lies below; intervals cover the choice of items, the seeds beside them that
of the training run.
"""


def judged_on(data: JudgedData) -> dict[str, Any]:
    """What figures must have in common to stand in one table."""
    return {
        "protocol": PROTOCOL,
        "limit": data.limit,
        "without": sorted(data.without),
        "spg_drawings": data.spg_drawings,
    }


def measure(
    row: str,
    seed: int,
    groups: Sequence[str],
    data: JudgedData,
    out: Path,
    device: str,
    console: Console,
) -> None:
    """Measure what a row lacks and write it, a group at a time."""
    about = {**judged_on(data), "weights": fingerprint(row, seed, data.work)}
    path = record_path(row, seed, out)
    record = read_record(path)
    if record["about"] != about:
        record = {"row": row, "seed": seed, "about": about, "groups": {}}
    if row in TRAINED:
        record["steps"] = trained_steps(weights_folder(row, seed, data.work))
    wanted = [name for name in groups if row != NEIGHBOURS or name == "recognition"]
    missing = [name for name in wanted if name not in record["groups"]]
    if not missing:
        return
    try:
        model = JudgedModel(row_features(row, seed, data.work), data, device)
    except FileNotFoundError as error:
        console.print(f"{row}, seed {seed}, is left out: {error}")
        return
    for name in missing:
        started = time.monotonic()
        columns = (neighbours if row == NEIGHBOURS else GROUPS[name])(model)
        record["groups"][name] = {column: scores.as_json() for column, scores in columns.items()}
        write_text(json.dumps(record) + "\n", path)
        figures = ", ".join(f"{column} {s.figure:.3f}" for column, s in columns.items())
        console.print(f"{row}, seed {seed}: {figures} ({time.monotonic() - started:.0f} s)")


def record_path(row: str, seed: int, out: Path) -> Path:
    """File of a row's and a seed's scores."""
    name = re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-")
    return out / f"{name}-{seed}.json"


def read_record(path: Path) -> dict[str, Any]:
    """What was measured; an empty record where nothing was."""
    if not path.is_file():
        return {"about": None, "groups": {}}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    # Not in records of before there was a choice.
    record["about"].setdefault("spg_drawings", SPG_DRAWINGS)
    return record


def in_table(record: Mapping[str, Any], data: JudgedData) -> bool:
    """Whether what was measured was measured on these data."""
    about = record["about"]
    return about is not None and judged_on(data).items() <= about.items()


def steps_of(
    rows: Sequence[str], seeds: Sequence[int], out: Path, data: JudgedData
) -> dict[str, int | None]:
    """Steps of trained rows that have weights or figures; None where neither tells them."""
    found: dict[str, int | None] = {}
    for row in (row for row in rows if row in TRAINED):
        for seed in seeds:
            record = read_record(record_path(row, seed, out))
            steps = trained_steps(weights_folder(row, seed, data.work))
            if steps is not None or in_table(record, data):
                found[f"{row}, seed {seed}"] = record.get("steps") if steps is None else steps
    return found


def collect(
    rows: Sequence[str], seeds: Sequence[int], groups: Sequence[str], out: Path, data: JudgedData
) -> tuple[dict[str, dict[str, list[Scores]]], dict[str, list[str]]]:
    """All that was written: scores by row and column, one per seed; and columns by group."""
    found: dict[str, dict[str, list[Scores]]] = {}
    columns: dict[str, dict[str, None]] = {name: {} for name in groups}
    for row in rows:
        for seed in seeds_of(row, seeds):
            record = read_record(record_path(row, seed, out))
            if not in_table(record, data):
                continue
            for name in groups:
                for column, scores in record["groups"].get(name, {}).items():
                    columns[name][column] = None
                    own = found.setdefault(row, {}).setdefault(column, [])
                    own.append(Scores.from_json(scores))
    return found, {name: list(own) for name, own in columns.items()}


def seeds_of(row: str, seeds: Sequence[int]) -> Sequence[int]:
    """Those of a trained row; nothing varies in the others."""
    return seeds if row in TRAINED else (0,)


def sheets(rows: Rows, columns: Mapping[str, Sequence[str]]) -> list[Sheet]:
    """One table per group of columns, and the ordering."""
    tasks = [column for name, own in columns.items() if name != "spectrum" for column in own]
    made = [figures_sheet(name, own, rows) for name, own in columns.items()]
    made.append(ordering_sheet("ordering", CLAIMS, tasks, rows))
    return [sheet for sheet in made if sheet.rows]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the stages")
    parser.add_argument("--quickdraw", type=Path, required=True, help="Quick, Draw! drawings")
    parser.add_argument("--spg", type=Path, required=True, help="SPG drawings")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and tables")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--columns", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--limit", type=int, help="few items, for a trial")
    parser.add_argument("--without", type=Path, help="JSON file of concepts not to judge on")
    parser.add_argument(
        "--spg-drawings", type=int, default=SPG_DRAWINGS, help="of every class, to fit SPG's probes"
    )
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True)
    folders = (options.work, options.quickdraw, options.spg, out / "packages")
    without = json.loads(options.without.read_text())["hexcodes"] if options.without else ()
    data = JudgedData(*folders, options.limit, without, options.spg_drawings)
    steps = steps_of(options.rows, options.seeds, out, data)
    require_as_many_steps(steps)
    for name in (name for name, count in steps.items() if count is None):
        console.print(f"{name}: how many steps it trained is not known, its about.json is gone.")
    for row in options.rows:
        for seed in seeds_of(row, options.seeds):
            measure(row, seed, options.columns, data, out, options.device, console)
    made = sheets(*collect(options.rows, options.seeds, options.columns, out, data))
    for sheet in made:
        console.print(sheet.table())
    text = "\n".join([NOTE.format(resamples=RESAMPLES), *(sheet.markdown() for sheet in made)])
    write_text(text, out / "table.md")
    console.print(f"written to {out / 'table.md'}")


if __name__ == "__main__":
    main()
