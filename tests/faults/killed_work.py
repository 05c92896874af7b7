"""Work that survives kills; run as a script, it prints counts as JSON.

python killed_work.py NAME FOLDER          killed once at each change
python killed_work.py NAME FOLDER KILLS SEED
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from killing import survive, survive_each_change

SAVES = 8
BATCHES = 8
PICTURES = 12
Scenario = tuple[Callable[[Path], None], Callable[[Path], None], Callable[[Path], Any]]


def adapters(_: Path) -> Scenario:
    """Adapters saved over and over, every value of the n-th save being n."""
    from sketchfusion_plugins import SketchFusionEncoder, preset
    from sketchfusion_plugins.checkpoint import adapter_state, load_adapters, save_adapters

    small = preset("tiny").replace(
        weights="random", aggregation__out_channels=32, aggregation__norm_groups=8
    )
    encoder = SketchFusionEncoder(small)
    last: dict[Path, float] = {}

    def state(folder: Path) -> float:
        if not (folder / "adapters.safetensors").exists():
            return 0.0
        assert load_adapters(encoder, folder) == []
        values = {float(v) for t in adapter_state(encoder).values() for v in t.unique()}
        assert len(values) == 1, f"a mixture of saves: {values}"
        return values.pop()

    def work(folder: Path) -> None:
        while (number := state(folder)) < SAVES:
            with torch.no_grad():
                for tensor in adapter_state(encoder).values():
                    tensor.fill_(number + 1)
            save_adapters(encoder, folder)
        # A save that was killed when its file was in place leaves an empty folder to the next.
        save_adapters(encoder, folder)

    def check(folder: Path) -> None:
        number = state(folder)
        assert number >= last.get(folder, 0.0), "a finished save was lost"
        last[folder] = number
        if (folder / "config.json").exists():
            json.loads((folder / "config.json").read_text())

    return work, check, digests


def index(_: Path) -> Scenario:
    """An index that is extended batch by batch."""
    from sketchfusion_plugins.index import IndexWriter, SketchIndex, approximation

    approximation.MINIMUM_ROWS = 50
    rows, dim = 20, 8
    last: dict[Path, int] = {}

    def work(folder: Path) -> None:
        exists = (folder / "current.json").exists()
        opened = IndexWriter.open(folder) if exists else IndexWriter.create(folder, dim, "hnsw")
        with opened as writer:
            for number in range(len(writer) // rows, BATCHES):
                vectors = np.random.default_rng(number).normal(size=(rows, dim))
                writer.add(vectors, [f"{number}/{row}" for row in range(rows)])
                writer.commit()

    def check(folder: Path) -> None:
        if not (folder / "current.json").exists():
            assert folder not in last
            return
        found = SketchIndex.open(folder)
        found.verify()
        assert len(found) % rows == 0
        assert len(found) >= last.get(folder, 0), "a committed batch was lost"
        last[folder] = len(found)

    def result(folder: Path) -> Any:
        found = SketchIndex.open(folder)
        query = np.random.default_rng(99).normal(size=(3, dim))
        vectors = np.concatenate(list(found.vectors()))
        return list(found.items()), vectors.tobytes(), found.search(query, 5, effort=999)

    return work, check, result


def spg(folder: Path) -> Scenario:
    """SPG's strokes drawn as pictures and masks, but for two that cannot be."""
    from sketchfusion_plugins.data.spg import write_spg
    from sketchfusion_plugins.problems import Problems

    source = folder / "source"
    source.mkdir()
    points = np.random.default_rng(0).integers(0, 200, (PICTURES, 30, 2)).astype(np.float32)
    points[3, 7] = np.nan
    np.savez(
        source / "spg_strokes.npz",
        xy=points.reshape(-1, 2),
        stroke=np.tile(np.repeat([0, 1, 2], 10), PICTURES),
        part=np.tile(np.repeat([0, 1, 0], 10), PICTURES),
        offset=np.arange(0, 30 * PICTURES + 1, 30),
    )
    lines = [f"{i},pig,{('train', 'valid')[i % 2]}" for i in range(PICTURES)]
    lines.insert(5, "9000,pig,train")
    (source / "spg.csv").write_text("index,class,split\n" + "\n".join(lines) + "\n")
    (source / "parts.json").write_text('{"pig": ["ear", "body"]}')

    def work(out: Path) -> None:
        problems = Problems()
        write_spg(source, out, 64, progress=False, problems=problems)
        assert len(problems.found) == 2

    return work, whole_files, digests


def openmoji(folder: Path) -> Scenario:
    """OpenMoji's drawings with part masks, but for one that cannot be drawn."""
    from sketchfusion_plugins.data.openmoji import load_concepts
    from sketchfusion_plugins.data.openmoji_parts import write_openmoji_parts
    from sketchfusion_plugins.problems import Problems

    root = folder / "svg"
    root.mkdir()
    for concept in load_concepts()[::300]:
        shutil.copy(concept.svg, root)
    next(root.iterdir()).write_text("no SVG")

    def work(out: Path) -> None:
        problems = Problems()
        write_openmoji_parts(out, 32, root, progress=False, problems=problems)
        assert len(problems.found) == 1

    return work, whole_files, digests


def features(folder: Path) -> Scenario:
    """Descriptors of pictures in a file of lines, by the command."""
    from sketchfusion_plugins.cli.features import features as command

    pictures = folder / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (PICTURES, 16, 16, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(pictures / f"{number:02d}.png")

    def work(out: Path) -> None:
        command([pictures], "pixels", out / "features.jsonl", 32, 2, "cpu", as_json=True)

    def check(out: Path) -> None:
        if (out / "features.jsonl").exists():
            lines = (out / "features.jsonl").read_bytes().splitlines(keepends=True)
            rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
            names = [Path(row["path"]).name for row in rows]
            assert names == [f"{number:02d}.png" for number in range(len(names))]

    return work, check, digests


def pretraining(_: Path) -> Scenario:
    """The training loop of examples/pretrain_tiny, with a checkpoint at every step."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "pretrain_tiny"))
    training = importlib.import_module("training")
    training.CHECKPOINT_SECONDS = 0

    def work(folder: Path) -> None:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)

        def step(generator: torch.Generator, _: float) -> dict[str, torch.Tensor]:
            x = torch.randn(16, 3, generator=generator)
            return {"loss": (model(x) - x.sum(1, keepdim=True)).square().mean()}

        budget = training.Budget(steps=25)
        training.train("line", folder, {"model": model}, step, dict, budget, 0.1, ema_decay=0.5)

    def check(folder: Path) -> None:
        if (folder / "line.pt").exists():
            torch.load(folder / "line.pt", weights_only=True)

    def result(folder: Path) -> Any:
        state = torch.load(folder / "line.pt", weights_only=True)
        return state["step"], [t.tolist() for t in (*state["model"].values(), *state["average"])]

    return work, check, result


def task(_: Path) -> Scenario:
    """A sketch task trained by mmengine's Runner, with a checkpoint at every iteration."""
    from sketchfusion_plugins.data.sources import load_task_data
    from sketchfusion_plugins.mm.safe_loading import last_checkpoint, read_checkpoint
    from sketchfusion_plugins.mm.task_config import read_task_config
    from sketchfusion_plugins.mm.train_task import train_task

    data = load_task_data("retrieval", "openmoji", 32, seed=0, limit=45)
    changes = {"weights": "random", "aggregation__out_channels": 32, "aggregation__norm_groups": 8}

    def work(folder: Path) -> None:
        options = {
            "encoder.changes": changes,
            "data.size": 32,
            "train_dataloader.batch_size": 2,
            "train_cfg.max_iters": 4,
            "train_cfg.val_interval": 4,
            "default_hooks.checkpoint.interval": 1,
            "judge.progress": False,
        }
        config = read_task_config("retrieval", options)
        config.work_dir, config.resume = str(folder), True
        train_task(config, data)

    def check(folder: Path) -> None:
        if folder.is_dir():
            last_checkpoint(folder)

    def result(folder: Path) -> Any:
        state = read_checkpoint(folder / "iter_4.pth")["state_dict"]
        return {name: tensor.tolist() for name, tensor in state.items()}

    return work, check, result


def whole_files(folder: Path) -> None:
    """Every picture can be read to its end."""
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            image.load()
    if (folder / "meta.json").exists():
        json.loads((folder / "meta.json").read_text())


def digests(folder: Path) -> dict[str, str]:
    """Checksum of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


SCENARIOS = {
    work.__name__: work for work in (adapters, index, spg, openmoji, features, pretraining, task)
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[2])
    prepared = SCENARIOS[sys.argv[1]](place)
    if len(sys.argv) == 3:
        print(json.dumps(survive_each_change(*prepared, place)))
    else:
        print(json.dumps(survive(*prepared, place, int(sys.argv[3]), int(sys.argv[4]))))
