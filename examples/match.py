"""Correspondence: train, then find a drawing's points in its warped, coloured picture.

python examples/match.py --out runs/match
"""

import argparse

import torch

from sketchfusion_plugins.data.sources import load_task_data
from sketchfusion_plugins.mm.task_config import read_task_config
from sketchfusion_plugins.mm.train_task import train_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/match")
    parser.add_argument("--iterations", type=int, default=15)
    arguments = parser.parse_args()

    options = {"work_dir": str(arguments.out), "train_cfg.max_iters": arguments.iterations}
    config = read_task_config("correspondence", options)
    data = load_task_data("correspondence", "openmoji", limit=400)
    task, row = train_task(config, data)
    task.eval().cpu()  # where the data are
    print("held-out concepts:", {name: str(value) for name, value in row.items()})

    pair = data.test[0]
    with torch.inference_mode():
        found = task(pair["source"][None], pair["target"][None], pair["source_points"][None])[0]
    for name, values in (("asked", pair["source_points"]), ("found", found)):
        print(name, values.double().round(decimals=1).tolist())
    print("true ", pair["target_points"].double().round(decimals=1).tolist())


if __name__ == "__main__":
    main()
