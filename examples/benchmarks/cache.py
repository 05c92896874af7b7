"""What the feature cache saves in training, and what it costs itself.

    OMP_NUM_THREADS=2 python examples/benchmarks/cache.py --out cache.json

Foundations have random weights, which cost what trained ones do. Steps with and without the cache
alternate, so that other load falls on both alike; medians of seconds per step.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sketchfusion_plugins import SketchFusionEncoder, preset
from sketchfusion_plugins.cache import FeatureStore, use_cache
from sketchfusion_plugins.cache.encoder import Keep, record_keys
from sketchfusion_plugins.files import write_text
from sketchfusion_plugins.heads.embedding import EmbeddingHead

SIZES = {"paper": 336, "sd15": 336, "small": 256, "tiny": 128}
COLUMNS = {
    "preset": "{}",
    "foundations": "{}",
    "adapter step s": "{:.3f}",
    "cached s": "{:.3f}",
    "ratio": "{:.2f}",
    "head step s": "{:.3f}",
    "cached head s": "{:.4f}",
    "head ratio": "{:.0f}",
    "name ms": "{:.1f}",
    "write ms": "{:.1f}",
    "read ms": "{:.1f}",
    "foundations kB": "{:.0f}",
    "map kB": "{:.0f}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["paper", "tiny"], choices=SIZES)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="where the cache lies; a temporary one unless given")
    parser.add_argument("--out", default="cache.json")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.presets:
        for dtype in ("float32", "bfloat16"):
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                rows.append(measure(name, dtype, arguments.batch_size, arguments.repeats, folder))
            print(json.dumps(rows[-1]), flush=True)
            gc.collect()
    report = {
        "batch size": arguments.batch_size,
        "repeats": arguments.repeats,
        "threads": torch.get_num_threads(),
        "peak GB": peak_memory(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "rows": rows,
    }
    write_text(json.dumps(report, indent=1) + "\n", Path(arguments.out))
    print("|", " | ".join(COLUMNS), "|")
    print("|", " | ".join("---" for _ in COLUMNS), "|")
    for row in rows:
        print("|", " | ".join(form.format(row[key]) for key, form in COLUMNS.items()), "|")


def measure(name: str, dtype: str, batch: int, repeats: int, folder: str) -> dict[str, object]:
    """One row: a preset whose foundations are held in one precision."""
    torch.manual_seed(0)
    config = preset(name).replace(weights="random", foundation_dtype=dtype)
    encoder = SketchFusionEncoder(config).train()
    size = SIZES[name]
    images = torch.rand(batch, 3, size, size) * 2 - 1
    store = FeatureStore(folder)

    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=1e-5)

    def adapter_step() -> None:
        loss = encoder(images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    plain, cached = alternate(encoder, store, "foundations", images, adapter_step, repeats)
    row = {
        "preset": name,
        "foundations": dtype,
        "size": size,
        "adapter step s": plain,
        "cached s": cached,
        "ratio": plain / cached,
        **costs(store, images[:1]),
        "foundations kB": store.size() / batch / 1e3,
    }
    encoder.zero_grad()
    encoder.requires_grad_(False)

    before = store.size()
    assert config.aggregation is not None
    head = EmbeddingHead(config.aggregation.out_channels)
    head_optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4)

    def head_step() -> None:
        loss = head(encoder(images))[:, 0].mean()
        head_optimizer.zero_grad()
        loss.backward()
        head_optimizer.step()

    plain, cached = alternate(encoder, store, "results", images, head_step, repeats)
    return {
        **row,
        "head step s": plain,
        "cached head s": cached,
        "head ratio": plain / cached,
        "map kB": (store.size() - before) / batch / 1e3,
    }


def alternate(
    encoder: SketchFusionEncoder,
    store: FeatureStore,
    keep: Keep,
    images: torch.Tensor,
    step: Callable[[], None],
    repeats: int,
) -> tuple[float, float]:
    """Median seconds of a step without the cache, and with all its records found."""
    with torch.no_grad():
        expected = encoder(images)
        use_cache(encoder, store, keep)
        for _ in range(2):
            assert torch.equal(encoder(images), expected), "the cache changed the features"
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(repeats + 1):
        for cached in (False, True):
            use_cache(encoder, store if cached else None, keep)
            start = time.perf_counter()
            step()
            # The first round warms up.
            if number:
                seconds[cached].append(time.perf_counter() - start)
    return statistics.median(seconds[False]), statistics.median(seconds[True])


def costs(store: FeatureStore, image: torch.Tensor, repeats: int = 20) -> dict[str, float]:
    """Median milliseconds per image of naming, writing and reading a record of foundations."""
    key = "".join(next(store.folder.rglob("*.safetensors")).with_suffix("").parts[-2:])
    record = store.get(key)
    assert record is not None
    calls: dict[str, Callable[[int], object]] = {
        "name ms": lambda _: record_keys({}, image),
        "write ms": lambda number: other.put(f"{number:064x}", record),
        "read ms": lambda number: other.get(f"{number:064x}"),
    }
    found = {}
    with tempfile.TemporaryDirectory(dir=store.folder.parent) as folder:
        other = FeatureStore(folder)
        for name, call in calls.items():
            seconds = []
            for number in range(repeats):
                start = time.perf_counter()
                call(number)
                seconds.append(time.perf_counter() - start)
            found[name] = statistics.median(seconds) * 1e3
    return found


def peak_memory() -> float | None:
    """Largest resident size of this process so far in GB."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e6


if __name__ == "__main__":
    main()
