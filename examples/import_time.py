"""Cost of ``import sketchfusion_plugins`` beside ``import torch, timm``.

Runs each in fresh interpreters, alternating, and prints medians.

    python examples/import_time.py --runs 7
"""

import argparse
import statistics
import subprocess
import sys

STATEMENTS = {
    "torch, timm": "import torch, timm",
    "torch, timm, sketchfusion_plugins": "import torch, timm, sketchfusion_plugins",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    seconds = {name: [] for name in STATEMENTS}
    for _ in range(runs + 1):
        for name, statement in STATEMENTS.items():
            code = (
                f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
            )
            output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
            seconds[name].append(float(output.stdout))
    # The first round fills the disk cache.
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name}: {value:.2f} s")
    base, whole = medians.values()
    print(f"added: {(whole / base - 1) * 100:.1f} % (median of {runs})")


if __name__ == "__main__":
    main()
