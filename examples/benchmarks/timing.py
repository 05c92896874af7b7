"""Time and memory of calls, taken in turns.

Calls run one after the other, round after round, so that what else the machine does meets all of
them alike. Memory is what a call's parts hold, plus the most that the call added while it ran: on
Linux the growth of the resident size to its peak, which the kernel lets a process reset; on CUDA
the allocator's own peak. Elsewhere it is not measured.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from tqdm import tqdm

STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Row:
    """Something to measure.

    Attributes:
        key: Short name, by which other rows refer to it.
        title: What it is.
        run: The call, given an image batch.
        parts: Modules that it needs in memory.
        precision: Whose peak it is compared with: ``"float32"`` or ``"bfloat16"``.
        grad: Run with gradients enabled.
        flops: Floating point operations, where they cannot be counted.
        compiled: The first run that is not counted compiles; it is not timed.
    """

    key: str
    title: str
    run: Callable[[Tensor], Any]
    parts: tuple[nn.Module, ...] = ()
    precision: str = "float32"
    grad: bool = False
    flops: int | None = None
    compiled: bool = False


@dataclass
class Measured:
    """What was measured of a row; an entry per run.

    Attributes:
        seconds: Time by the clock.
        cpu_seconds: Processor time of all threads, which other programs hardly change.
        flops: Floating point operations of one run, a multiply-add counting two.
        held: Bytes of the parts' weights.
        added: Most bytes that a run added to what the process held.
    """

    row: Row
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    flops: int = 0
    held: int = 0
    added: int | None = None

    @property
    def median(self) -> float:
        """Median time by the clock."""
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        """Median processor time."""
        return statistics.median(self.cpu_seconds)

    def time(self, clock: str) -> float:
        """Median by a clock, ``"wall"`` or ``"cpu"``."""
        return self.median if clock == "wall" else self.cpu_median


def measure(
    rows: list[Row], image: Tensor, repeats: int, patience: float = 20.0
) -> dict[str, Measured]:
    """Run rows in turns.

    Args:
        rows: What to run.
        image: Batch given to every row.
        repeats: Timed runs of a row, after one that warms up and counts operations.
        patience: Rows whose first run took more seconds are not run again; that run counts.
    """
    results = {row.key: Measured(row, held=weight_bytes(row.parts)) for row in rows}
    waiting = list(rows)
    with tqdm(total=len(rows) * (1 + repeats), disable=None, leave=False) as progress:
        for turn in range(1 + repeats):
            for row in list(waiting):
                progress.set_description(row.title[:40])
                result = results[row.key]
                seconds, cpu_seconds, added, flops = run_once(row, image, count=turn == 0)
                if row.compiled and turn == 0:
                    # What counts operations is not compiled; the next run compiles.
                    run_once(row, image, count=False)
                    seconds, cpu_seconds, added, _ = run_once(row, image, count=False)
                if added is not None:
                    result.added = max(added, result.added or 0)
                if turn == 0:
                    result.flops = row.flops or flops
                if turn > 0 or seconds > patience:
                    result.seconds.append(seconds)
                    result.cpu_seconds.append(cpu_seconds)
                if turn == 0 and seconds > patience:
                    waiting.remove(row)
                    progress.update(repeats)
                progress.update()
    return results


def run_once(row: Row, image: Tensor, count: bool) -> tuple[float, float, int | None, int]:
    """Seconds, processor seconds, added bytes and, if counted, operations of one run."""
    device = image.device
    base = start_memory(device)
    with torch.set_grad_enabled(row.grad):
        started, busy = time.perf_counter(), time.process_time()
        if count:
            with FlopCounterMode(display=False, custom_mapping=_attention_on_cpu()) as counter:
                row.run(image)
        else:
            row.run(image)
        synchronise(device)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - busy
    peak = peak_memory(device)
    added = None if base is None or peak is None else max(0, peak - base)
    return seconds, cpu_seconds, added, counter.get_total_flops() if count else 0


def _attention_on_cpu() -> dict[Any, Any]:
    """How to count fused attention on a CPU, which the counter of torch 2.14 passes by."""

    def forward(query: Any, key: Any, value: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(
        grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any, **__: Any
    ) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    name = "_scaled_dot_product_flash_attention_for_cpu"
    return {
        getattr(torch.ops.aten, name): forward,
        getattr(torch.ops.aten, f"{name}_backward"): backward,
    }


def synchronise(device: torch.device) -> None:
    """Wait for the device; calls return before it has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def start_memory(device: torch.device) -> int | None:
    """Begin a new peak, and return the bytes held now; on a CPU let go of what is free first."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        # The allocator keeps its blocks: else the next run would be timed with cudaMalloc.
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    try:
        # Freed memory that the C library keeps would hide what the next run needs.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        RESET_PEAK.write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def peak_memory(device: torch.device) -> int | None:
    """Most bytes held since `start_memory`."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status("VmHWM") if STATUS.is_file() else None


def weight_bytes(parts: tuple[nn.Module, ...]) -> int:
    """Bytes of the parts' parameters and buffers, shared ones counted once."""
    tensors = {
        id(tensor): tensor.numel() * tensor.element_size()
        for part in parts
        for tensor in (*part.parameters(), *part.buffers())
    }
    return sum(tensors.values())


def operators(
    run: Callable[[], Any], device: torch.device, top: int = 10
) -> tuple[float, list[tuple[str, float, int]]]:
    """Where a call's time goes, by PyTorch's profiler on the CPU side.

    Returns:
        Share of the time spent outside operators, which is Python's, and for the operators that
        cost most: name, share of the time, calls.
    """
    from torch.profiler import ProfilerActivity, profile, record_function

    with torch.no_grad():
        run()
        with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("the call"):
            run()
            synchronise(device)
    events: list[Any] = list(profiler.key_averages())
    total = sum(event.self_cpu_time_total for event in events)
    outside = sum(event.self_cpu_time_total for event in events if event.key == "the call")
    inside = [event for event in events if event.key != "the call"]
    inside.sort(key=lambda event: -event.self_cpu_time_total)
    costs = [(event.key, event.self_cpu_time_total / total, event.count) for event in inside[:top]]
    return outside / total, costs


def peaks(results: Mapping[str, Measured], clock: str = "wall") -> dict[str, float]:
    """Best operations per second of the measured peak rows, by precision."""
    best: dict[str, float] = {}
    for key, result in results.items():
        if key.startswith("h"):
            precision = result.row.precision
            best[precision] = max(best.get(precision, 0.0), result.flops / result.time(clock))
    return best


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
