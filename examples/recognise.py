"""Recognition: train a classifier of line drawings, judge it on concepts it never saw, ask it.

python examples/recognise.py --out runs/recognise
"""

import argparse

import torch

from sketchfusion_plugins.data.sources import load_task_data
from sketchfusion_plugins.mm.task_config import read_task_config
from sketchfusion_plugins.mm.train_task import train_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/recognise")
    parser.add_argument("--iterations", type=int, default=25)
    arguments = parser.parse_args()

    options = {"work_dir": str(arguments.out), "train_cfg.max_iters": arguments.iterations}
    config = read_task_config("recognition", options)
    data = load_task_data("recognition", "openmoji", limit=400)
    task, row = train_task(config, data)
    task.eval().cpu()  # where the data are
    print("held-out concepts:", {name: str(value) for name, value in row.items()})

    drawing = data.test[0]
    with torch.inference_mode():
        probabilities = task(drawing["image"][None]).softmax(1)[0]
    print("truth:", data.categories[drawing["label"]])
    for index in probabilities.topk(5).indices.tolist():
        print(f"{probabilities[index]:.2f} {task.classes[index]}")


if __name__ == "__main__":
    main()
