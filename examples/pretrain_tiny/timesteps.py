"""Which noise level suits the miniature: correspondence of the frozen UNet's levels.

python examples/pretrain_tiny/timesteps.py --work DIR

Measured on concepts that training has seen; held-out ones choose nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from foundations import load_foundations

from sketchfusion_plugins.data.openmoji import held_out_concepts
from sketchfusion_plugins.data.openmoji_drawings import load_drawings
from sketchfusion_plugins.data.openmoji_pairs import OpenMojiCorrespondence
from sketchfusion_plugins.data.task_data import TaskData
from sketchfusion_plugins.evaluation.judge import Judge
from sketchfusion_plugins.features import DiffusionFeatures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the earlier stages")
    parser.add_argument("--timesteps", type=int, nargs="+", default=[0, 100, 200, 300, 400, 600])
    parser.add_argument("--concepts", type=int, default=200)
    options = parser.parse_args(arguments)
    hidden = held_out_concepts()
    drawings = load_drawings(128)
    seen = [i for i, c in enumerate(drawings.concepts) if c.hexcode not in hidden]
    chosen = drawings.subset(seen[:: max(1, len(seen) // options.concepts)])
    pairs = OpenMojiCorrespondence(chosen, points=8, seed=1)
    judge = Judge(TaskData("correspondence", "seen concepts", 128, train=None, test=pairs))
    for timestep in options.timesteps:
        changes = {"diffusion__timestep": timestep}
        encoder = load_foundations(options.work / "export", changes=changes)
        row = judge(DiffusionFeatures(encoder))
        figures = ", ".join(f"{name} {measured}" for name, measured in row.items())
        print(f"timestep {timestep}: {figures}, n = {len(pairs)}", flush=True)


if __name__ == "__main__":
    main()
