"""Time per picture and memory of ``sketchfusion features``, for few pictures and for many.

python examples/benchmarks/features_scale.py --counts 100 1000 10000 --out features_scale.json

Pictures are seeded drawings, no two alike. The command runs in a process of its own for every
count and round, in turns; between its first and its last batch, time and memory are noted whenever
descriptors are written, so that loading the model does not count. Memory needs Linux.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sketchfusion_plugins.files import write_text

SIDE = 128
STATUS = Path("/proc/self/status")


def main() -> None:
    options = _options()
    if options.child:
        describe(Path(options.child), options)
        return
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for count in options.counts:
            draw(Path(folder, str(count)), count)
        for turn in range(options.repeats):
            for count in options.counts:
                command = [sys.executable, __file__, "--child", str(Path(folder, str(count)))]
                command += ["--model", options.model, "--batch-size", str(options.batch_size)]
                printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                points = json.loads(printed.stdout.splitlines()[-1])
                runs.append({"count": count, "turn": turn, **summarise(points)})
    rows = table(runs, options.counts, options.clock)
    report = {
        "model": options.model,
        "clock": options.clock,
        "batch_size": options.batch_size,
        "threads": os.environ.get("OMP_NUM_THREADS", f"all of {os.cpu_count()}"),
        "rows": rows,
        "runs": runs,
    }
    write_text(json.dumps(report, indent=1) + "\n", Path(options.out))
    shown = Table(*rows[0])
    for row in rows:
        shown.add_row(*("" if value is None else f"{value:.4g}" for value in row.values()))
    Console().print(shown)


def draw(folder: Path, count: int) -> None:
    """Write so many drawings of some wavy strokes each, the same every time."""
    import numpy as np
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True)
    for number in range(count):
        generator = np.random.default_rng([0, number])
        image = Image.new("RGB", (SIDE, SIDE), "white")
        pen = ImageDraw.Draw(image)
        for _ in range(generator.integers(3, 9)):
            steps = np.cumsum(generator.normal(0, 9, size=(12, 2)), 0)
            points = steps + generator.uniform(0.2, 0.8, 2) * SIDE
            pen.line([tuple(map(float, point)) for point in points], "black", 2)
        image.save(folder / f"{number:06d}.png")


def describe(pictures: Path, options: argparse.Namespace) -> None:
    """Run the command, and print pictures, seconds, processor seconds and bytes at every batch."""
    from sketchfusion_plugins.cli import app
    from sketchfusion_plugins.inference.descriptor_files import DescriptorWriter

    points: list[tuple[int, float, float, int | None]] = []
    written = 0
    add = DescriptorWriter.add

    def noted(self: DescriptorWriter, paths: Any, descriptors: Any) -> None:
        nonlocal written
        add(self, paths, descriptors)
        written += len(paths)
        points.append((written, time.perf_counter(), time.process_time(), resident()))

    DescriptorWriter.add = noted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["features", str(pictures), "--model", options.model]
        arguments += ["--batch-size", str(options.batch_size), "--device", "cpu"]
        app([*arguments, "--out", str(Path(folder, "features.jsonl"))], standalone_mode=False)
    print(json.dumps(points))


def resident() -> int | None:
    """Bytes that this process holds."""
    if not STATUS.is_file():
        return None
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def summarise(points: list[list[Any]]) -> dict[str, Any]:
    """Seconds per picture after the first batch, and memory at the first batches and at most."""
    first, last = points[0], points[-1]
    pictures = last[0] - first[0]
    # The first batches still fill the allocator's and the kernels' own stores.
    early, late = [
        max((point[3] for point in part if point[3] is not None), default=None)
        for part in (points[: math.ceil(100 / first[0])], points)
    ]
    return {
        "wall": (last[1] - first[1]) / pictures,
        "cpu": (last[2] - first[2]) / pictures,
        "bytes_of_first_100": early,
        "bytes_at_most": late,
    }


def table(runs: list[dict[str, Any]], counts: list[int], clock: str) -> list[dict[str, Any]]:
    """A row per count; ratios to the first count, of medians."""

    def median(count: int, key: str) -> float | None:
        values = [run[key] for run in runs if run["count"] == count and run[key] is not None]
        return statistics.median(values) if values else None

    def ratio(value: float | None, base: float | None) -> float | None:
        return None if value is None or not base else value / base

    rows = []
    for count in counts:
        seconds, memory = median(count, clock), median(count, "bytes_at_most")
        rows.append(
            {
                "pictures": count,
                "ms / picture": None if seconds is None else seconds * 1e3,
                "ratio": ratio(seconds, median(counts[0], clock)),
                "MiB at most": ratio(memory, 2**20),
                "memory ratio": ratio(memory, median(counts[0], "bytes_at_most")),
                "of its first 100": ratio(memory, median(count, "bytes_of_first_100")),
            }
        )
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--model", default="sketchfusion/tiny")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--out", default="features_scale.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.counts) <= options.batch_size:
        parser.error("every count must be larger than the batch size: its first batch is left out.")
    return options


if __name__ == "__main__":
    main()
