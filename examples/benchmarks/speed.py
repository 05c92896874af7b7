"""Time and memory of the encoder beside the released recipe, its own parts and other backbones.

python examples/benchmarks/speed.py --model base --out speed_base
python examples/benchmarks/speed.py --model tiny --out speed_tiny

Writes `NAME.json`, `NAME.md` and `NAME.png`. Weights are random: neither time nor memory depends on
them. README.md beside this file says what every row is and how it is measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import shlex
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from models import build_models
from plain import floors, plain_levels, recipe
from report import plot, to_dict, to_markdown
from rows import compiled, machine, others, ours, training, without
from timing import Row, measure, operators
from torch import Tensor

from sketchfusion_plugins.files import write_text
from sketchfusion_plugins.images import pad_to_multiple

SIZES = {"base": [336, 512], "tiny": [128]}
BATCHES = {"base": [1, 8], "tiny": [1, 64]}
# Ratios of features whose rounding alone differs, and of those in bfloat16.
RELATIVE_ERROR, COSINE = 1e-4, 0.999


def main() -> None:
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    # Else convolutions of the rows in float32 would have ten bits, and matrix products would not.
    torch.backends.cudnn.allow_tf32 = False
    fp32 = build_models(options.model, "float32", device)
    bf16 = build_models(options.model, "bfloat16", device, fp32.encoder)
    report: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "model": options.model,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "machine": platform.processor() or platform.machine(),
        "clock": options.clock,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "cases": [],
    }
    cases = [(size, batch) for batch in options.batches for size in options.sizes]
    for number, (size, batch) in enumerate(cases):
        generator = torch.Generator().manual_seed(0)
        image = (torch.rand(batch, 3, size, size, generator=generator) * 2 - 1).to(device)
        rows = [*ours(fp32, bf16), *floors(fp32, bf16)]
        rows += compiled(fp32, bf16, options.smoke)
        rows += machine(device, options.smoke)
        rows += others(options.model, size, batch, device)
        if batch == 1:
            rows += recipe(fp32, 2) if options.smoke else recipe(fp32)
            rows += without(fp32, bf16, light_vae=options.model == "base")
            rows += training(fp32, bf16)
        rows = _chosen(rows, options, first=number == 0, batch=batch, size=size)
        results = measure(rows, image, options.repeats, options.patience)
        report["cases"].append(
            {
                "size": size,
                "batch": batch,
                "rows": to_dict(
                    {key: results[key] for key in sorted(results)}, batch, options.clock
                ),
                "checks": _checks(fp32, bf16, image) if batch == 1 else [],
                "operators": _profile(bf16, image) if number == 0 or batch > 8 else None,
            }
        )
        # Written after every case: a run that is stopped keeps what it has.
        write_text(json.dumps(report, indent=1) + "\n", Path(f"{options.out}.json"))
        write_text(to_markdown(report), Path(f"{options.out}.md"))
        plot(report, Path(f"{options.out}.{options.plot}"))
        del rows, results
        gc.collect()
    print(to_markdown(report))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SIZES, default="base")
    parser.add_argument("--sizes", type=int, nargs="+", help="sides in pixels")
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--rows", nargs="+", help="keys or their letters, such as c d f h; all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=2, help="timed runs of a row")
    parser.add_argument(
        "--patience",
        type=float,
        default=20.0,
        help="seconds above which a row is not repeated: its first run, cold, counts",
    )
    parser.add_argument("--threads", type=int, help="PyTorch's own number unless given")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="what ratios are taken of: processor time is steadier on a busy machine",
    )
    parser.add_argument("--out", default="speed", help="path of the results, without suffix")
    parser.add_argument("--plot", choices=["png", "svg"], default="png")
    parser.add_argument("--smoke", action="store_true", help="small peaks, 2 draws: for tests")
    options = parser.parse_args()
    options.sizes = options.sizes or SIZES[options.model]
    options.batches = options.batches or BATCHES[options.model]
    return options


def _chosen(
    rows: list[Row], options: argparse.Namespace, first: bool, batch: int, size: int
) -> list[Row]:
    """Rows asked for; unless named, what takes minutes is measured at the first size alone."""
    if options.rows:
        wanted = options.rows
        return [row for row in rows if {"all", row.key, row.key[0]} & set(wanted)]
    if not first:
        once = "aekt" if options.model == "base" else "aet"
        rows = [row for row in rows if row.key[0] not in once]
    if options.device == "cpu" and batch * size**2 > 1_500_000:
        rows = [row for row in rows if row.precision == "bfloat16" and row.key[0] != "g"]
    elif options.device == "cpu" and options.model == "base":
        rows = [row for row in rows if row.key not in ("t3", "t4")]
    return rows


@torch.no_grad()
def _checks(fp32: Any, bf16: Any, image: Tensor) -> list[str]:
    """Features of rows (b), (c) and (d) compared, level by level."""
    encoder = fp32.encoder
    multiple = encoder.diffusion.latent_stride
    expected = plain_levels(fp32, pad_to_multiple(image, multiple))
    levels = encoder.forward_levels(image)
    held = bf16.encoder.forward_levels(image)
    errors, cosines = [], []
    for name, level, other in zip(levels.names, levels.maps, held.maps, strict=True):
        errors.append(float((level - expected[name]).norm() / expected[name].norm()))
        cosines.append(float(F.cosine_similarity(level, other.float(), dim=1).mean()))
    shown = ", ".join(
        f"{name} {error:.1e}" for name, error in zip(levels.names, errors, strict=True)
    )
    verdict = "equal" if max(errors) <= RELATIVE_ERROR else "NOT EQUAL"
    first = f"Levels of (c) against (b), relative error: {shown}: {verdict} to {RELATIVE_ERROR}."
    shown = ", ".join(
        f"{name} {value:.5f}" for name, value in zip(levels.names, cosines, strict=True)
    )
    verdict = "at least" if min(cosines) >= COSINE else "BELOW"
    return [
        first,
        f"Levels of (d) against (c), mean cosine similarity: {shown}: {verdict} {COSINE}.",
    ]


def _profile(bf16: Any, image: Tensor) -> dict[str, Any]:
    outside, top = operators(lambda: bf16.encoder(image), image.device)
    return {"row": "d", "outside": outside, "top": top}


if __name__ == "__main__":
    main()
