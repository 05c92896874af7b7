"""Query segmentation: train, then find what a drawing shows in a scene, and write the mask.

python examples/segment_by_sketch.py --out runs/segment

The default shows the way in two minutes and finds little; --iterations 200 takes ten and finds what
the table of the four tasks in RESULTS.md says, on more concepts.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from sketchfusion_plugins.data.sources import load_task_data
from sketchfusion_plugins.mm.task_config import read_task_config
from sketchfusion_plugins.mm.train_task import train_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/segment"))
    parser.add_argument("--iterations", type=int, default=15)
    arguments = parser.parse_args()

    options = {"work_dir": str(arguments.out), "train_cfg.max_iters": arguments.iterations}
    config = read_task_config("query_segmentation", options)
    data = load_task_data("query_segmentation", "openmoji", limit=400)
    task, row = train_task(config, data)
    task.eval().cpu()  # where the data are
    print("held-out concepts:", {name: str(value) for name, value in row.items()})

    scene = data.test[0]
    with torch.inference_mode():
        mask = task(scene["sketch"][None], scene["photo"][None])[0] > 0
    # The scene is larger than the drawing.
    free = scene["photo"].shape[1] - scene["sketch"].shape[1]
    drawing = F.pad(scene["sketch"], (0, free, 0, free), value=1.0)
    images = [(picture + 1) / 2 for picture in (drawing, scene["photo"])]
    images += [m.float().expand(3, -1, -1) for m in (mask, scene["mask"])]
    sheet = (torch.cat(images, 2) * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(sheet).save(arguments.out / "scene.png")
    print(f"drawing, scene, found and true pixels are in {arguments.out / 'scene.png'}")


if __name__ == "__main__":
    main()
