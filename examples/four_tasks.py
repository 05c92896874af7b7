"""All four sketch tasks on OpenMoji: trained, and held against the ladder of baselines.

python examples/four_tasks.py --out runs/four_tasks

Concepts are held out by families, whatever the seed; the judged pairs are warped. Started again
with the same options, it goes on where it stopped. Tables (Markdown) and figures (JSON) are written
to the folder.
"""

import argparse
from pathlib import Path

from rich.console import Console

from sketchfusion_plugins.data.sources import load_task_data
from sketchfusion_plugins.evaluation.ladder import baseline_identities, baselines, evaluate
from sketchfusion_plugins.inference.identity import identity_of
from sketchfusion_plugins.inference.models import fresh_encoder
from sketchfusion_plugins.mm.task_config import encoder_config, read_task_config
from sketchfusion_plugins.mm.train_task import train_task
from sketchfusion_plugins.tasks.load import load_task

TASKS = ("recognition", "retrieval", "query_segmentation", "correspondence")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/four_tasks"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--limit", type=int, help="fewer concepts, for a quick look")
    parser.add_argument("--weights", default="pretrained", choices=("pretrained", "random"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console(soft_wrap=True)

    for name in arguments.tasks:
        run = arguments.out / name
        options = {
            "work_dir": str(run),
            "resume": True,
            "train_cfg.max_iters": arguments.iterations,
            "randomness.seed": arguments.seed,
            "encoder.changes.weights": arguments.weights,
            "data.limit": arguments.limit,
        }
        config = read_task_config(name, options)
        data = load_task_data(name, **config.data)
        # After the last checkpoint heads are fitted, and adapters are written once more.
        chosen = (arguments.iterations, arguments.seed, arguments.weights, arguments.limit)
        finished = run / "_".join(map(str, ("finished", *chosen)))
        if not finished.exists():
            train_task(config, data)
            finished.touch()
        encoder = fresh_encoder(encoder_config(config.encoder), arguments.seed)
        models = baselines(name, encoder)
        models["fused, trained"] = lambda run=run: load_task(run / "adapters")
        identities = baseline_identities(encoder.config, arguments.seed)
        identities["fused, trained"] = {
            **identity_of(str(run / "adapters")),
            "iterations": arguments.iterations,
            "batch": config.train_dataloader.batch_size,
            "seed": arguments.seed,
        }
        report = evaluate(
            data,
            models,
            about={"split seed": data.split_seed},
            identities=identities,
            out=arguments.out,
            finished=lambda model, row: console.print(f"{model}:", *map(str, row.values())),
        )
        console.print(report.table())


if __name__ == "__main__":
    main()
