"""Retrieval: train embeddings, put a gallery into an index on disk, search it with a drawing.

python examples/retrieve.py --out runs/retrieve
"""

import argparse
import shutil
from pathlib import Path

import torch

from sketchfusion_plugins.data.sources import load_task_data
from sketchfusion_plugins.index import IndexWriter, SketchIndex
from sketchfusion_plugins.mm.task_config import read_task_config
from sketchfusion_plugins.mm.train_task import train_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/retrieve"))
    parser.add_argument("--iterations", type=int, default=15)
    arguments = parser.parse_args()

    options = {"work_dir": str(arguments.out), "train_cfg.max_iters": arguments.iterations}
    config = read_task_config("retrieval", options)
    data = load_task_data("retrieval", "openmoji", limit=400)
    task, row = train_task(config, data)
    task.eval().cpu()  # where the data are
    print("held-out concepts:", {name: str(value) for name, value in row.items()})

    folder = arguments.out / "index"
    shutil.rmtree(folder, ignore_errors=True)  # an earlier model's
    with IndexWriter.create(folder, dim=256) as index, torch.inference_mode():
        for item in data.gallery:
            index.add(task(item["image"][None]), [item["key"]])
    query = data.test[0]
    with torch.inference_mode():
        hits = SketchIndex.open(folder).search(task(query["image"][None]), k=5)[0]
    print("drawing:", query["key"])
    for hit in hits:
        print(f"{hit.score:.3f} {hit.key}")


if __name__ == "__main__":
    main()
