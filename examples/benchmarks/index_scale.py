"""Time, memory and recall of the index kinds on a synthetic gallery of any size.

python examples/benchmarks/index_scale.py --rows 1000000 --out index_scale.json

Vectors are seeded: overlapping Gaussian clusters of a thousand vectors in 32 dimensions, as many as
learned embeddings tend to need, mapped linearly to more with a little noise in every dimension.
Every kind is built and searched in a process of its own. Memory (Linux only) is the most that the
process held at once, pages of mapped files included; CPU time tells how far other load stretched
the building. Recall is against the exact search.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from sketchfusion_plugins.files import write_text
from sketchfusion_plugins.index import IndexWriter, SketchIndex

LATENT_DIM = 32
ROWS_PER_CENTRE = 1000
ROWS_PER_COMMIT = 250_000
BLOCK = 50_000
EFFORTS = {"flat": (None,), "ivf": (8, 32, 128), "ivfpq": (8, 32, 128), "hnsw": (32, 128, 512)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--kinds", nargs="+", default=list(EFFORTS), choices=EFFORTS)
    parser.add_argument("--folder", help="where indexes are built; a temporary one unless given")
    parser.add_argument("--out", default="index_scale.json")
    arguments = parser.parse_args()
    kinds = ["flat", *(kind for kind in arguments.kinds if kind != "flat")]

    results = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for kind in kinds:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                task = (kind, Path(folder), arguments.rows, arguments.dim, arguments.queries)
                results += pool.submit(measure, *task).result()
    report = {
        "rows": arguments.rows,
        "dim": arguments.dim,
        "queries": arguments.queries,
        "threads": os.environ.get("OMP_NUM_THREADS", f"all of {os.cpu_count()}"),
        "machine": platform.processor() or platform.machine(),
        "results": results,
    }
    write_text(json.dumps(report, indent=1) + "\n", Path(arguments.out))
    show(results)


def measure(kind: str, folder: Path, rows: int, dim: int, queries: int) -> list[dict[str, object]]:
    """Build an index, then search it at every effort."""
    made = committed = 0
    building = computing = 0.0
    with IndexWriter.create(folder / kind, dim, kind) as writer:
        for block in gallery(rows, dim):
            keys = [f"photo-{row}" for row in range(made, made + len(block))]
            start, busy = time.perf_counter(), time.process_time()
            writer.add(block, keys)
            made += len(block)
            if made - committed >= ROWS_PER_COMMIT or made == rows:
                writer.commit(progress=True)
                committed = made
            building += time.perf_counter() - start
            computing += time.process_time() - busy
    size = sum(path.stat().st_size for path in (folder / kind).iterdir())
    memory = peak_memory()

    index = SketchIndex.open(folder / kind)
    questions = ask(rows, dim, queries)
    answers = folder / "exact.npy"
    results: list[dict[str, object]] = []
    for effort in EFFORTS[kind]:
        index.search_rows(questions[:10], 10, effort)  # maps the pages
        start = time.perf_counter()
        for question in questions:
            index.search_rows(question[None], 10, effort)
        single = (time.perf_counter() - start) / queries
        start = time.perf_counter()
        _, found = index.search_rows(questions, 10, effort)
        batched = (time.perf_counter() - start) / queries
        if kind == "flat":
            np.save(answers, found)
        exact = np.load(answers, allow_pickle=False)
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)])
        results.append(
            {
                "kind": kind,
                "effort": effort,
                "build s": round(building, 1),
                "CPU s": round(computing, 1),
                "peak MiB": memory,
                "disk MiB": size // 2**20,
                "query ms": round(single * 1e3, 3),
                "batched ms": round(batched * 1e3, 3),
                "recall@10": round(float(recall), 4),
            }
        )
    return results


def gallery(rows: int, dim: int) -> Iterator[np.ndarray]:
    """Clustered vectors ``[n, dim]`` in blocks, the same every time."""
    centres, directions = _space(rows, dim)
    for number, start in enumerate(range(0, rows, BLOCK)):
        generator = np.random.default_rng([1, number])
        chosen = generator.integers(len(centres), size=min(BLOCK, rows - start))
        yield _draw(generator, centres[chosen], directions)


def ask(rows: int, dim: int, queries: int) -> np.ndarray:
    """Queries ``[n, dim]`` from the gallery's clusters."""
    generator = np.random.default_rng(2)
    centres, directions = _space(rows, dim)
    return _draw(generator, centres[generator.integers(len(centres), size=queries)], directions)


def peak_memory() -> int | None:
    """Largest resident size of this process in MiB; getrusage would count its parent's too."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def _space(rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres ``[n, 32]`` of the clusters and directions ``[32, dim]`` of the mapping."""
    generator = np.random.default_rng(0)
    centres = max(1, rows // ROWS_PER_CENTRE), LATENT_DIM
    return (
        generator.standard_normal(centres, dtype=np.float32),
        generator.standard_normal((LATENT_DIM, dim), dtype=np.float32) / np.sqrt(LATENT_DIM),
    )


def _draw(
    generator: np.random.Generator, centres: np.ndarray, directions: np.ndarray
) -> np.ndarray:
    """One vector around every centre."""
    latent = centres + generator.standard_normal(centres.shape, dtype=np.float32)
    noise = generator.standard_normal((len(centres), directions.shape[1]), dtype=np.float32)
    return latent @ directions + 0.1 * noise


def show(results: list[dict[str, object]]) -> None:
    table = Table(*results[0])
    for result in results:
        table.add_row(*("" if value is None else str(value) for value in result.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
