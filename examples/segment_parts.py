"""Sketch parts by MMSegmentation's own train script, held against baselines, with a killed run.

python examples/segment_parts.py openmoji --out runs/openmoji_parts
python examples/segment_parts.py spg --source DIR --out runs/spg_parts

Trains `tiny_fpn_*_128` with two seeds; a third run is killed half-way and resumed. Started again,
it goes on where it stopped. Prints a table and writes results.json.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sketchfusion_plugins import stroke_metrics
from sketchfusion_plugins.data import spg
from sketchfusion_plugins.data.layout import IGNORED
from sketchfusion_plugins.data.openmoji_parts import write_openmoji_parts
from sketchfusion_plugins.files import write_text

PATCH = 9
SAMPLES_PER_SKETCH = 200
# Iterations, in the configs' schedule.
WARM_UP = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("openmoji", "spg"))
    parser.add_argument("--source", type=Path, help="folder with SPG's files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--weights", default="pretrained", choices=("pretrained", "random"))
    arguments = parser.parse_args()
    if arguments.task == "spg" and arguments.source is None:
        parser.error("spg needs --source, the folder with spg.csv, spg_strokes.npz and parts.json")
    if arguments.iterations <= WARM_UP:
        parser.error(f"--iterations must be above {WARM_UP}, after which the warm-up has ended")
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)

    if arguments.task == "openmoji":
        folder = out / "data" / "openmoji_parts_128"
        write_openmoji_parts(folder, size=128)
        rows = openmoji_baselines(folder)
    else:
        folder = arguments.source.resolve()
        rows = spg_baselines(folder)
    config = f"tiny_fpn_{arguments.task}_128"
    for name, seed, killed in (("seed 0", 0, False), ("seed 1", 1, False), ("killed", 0, True)):
        run = out / name.replace(" ", "")
        title = "seed 0, killed half-way and resumed" if killed else name
        options = (seed, arguments.iterations, arguments.weights, killed)
        rows[f"{config}, {title}"] = train(config, folder, run, *options)

    print(f"\n{arguments.task}, {arguments.iterations} iterations of 16 sketches,", end=" ")
    print(f"{arguments.weights} foundations")
    for name, metrics in rows.items():
        print(f"{name:55}", *(f"{key} {value:.1f}" for key, value in metrics.items()))
    write_text(json.dumps(rows, indent=1) + "\n", out / "results.json")


def train(
    config: str, folder: Path, run: Path, seed: int, iterations: int, weights: str, killed: bool
) -> dict[str, float]:
    """Train and validate once, with mmseg's script; a finished run is only read."""
    half = iterations // 2
    command = [sys.executable, "-m", "sketchfusion_plugins", "mm-train", config]
    command += ["--work-dir", str(run), "--resume", "--cfg-options", f"randomness.seed={seed}"]
    command += [f"{loader}_dataloader.dataset.data_root={folder}" for loader in ("train", "val")]
    command += [f"train_cfg.max_iters={iterations}", f"train_cfg.val_interval={iterations}"]
    command += [f"param_scheduler.1.end={iterations}", f"model.backbone.weights={weights}"]
    command += [f"default_hooks.checkpoint.interval={half}"]
    if killed and not any(run.glob("*.pth")):
        process = subprocess.Popen(command, start_new_session=True)
        while not (run / "last_checkpoint").exists():
            if process.poll() is not None:
                raise RuntimeError(f"training ended early with status {process.returncode}")
            time.sleep(0.5)
        # A few iterations after the checkpoint are lost, as they would be.
        time.sleep(5)
        subprocess.run(["kill", f"-{signal.SIGKILL.value}", "--", f"-{process.pid}"], check=True)
        process.wait()
    if not (run / f"iter_{iterations}.pth").exists() or not (found := last_metrics(run)):
        subprocess.run(command, check=True)
        found = last_metrics(run)
    return found


def last_metrics(run: Path) -> dict[str, float]:
    """Last validation that mmengine logged in a work directory, in percent; empty if none."""
    found: dict[str, float] = {}
    for log in sorted(run.glob("*/vis_data/scalars.json")):
        for line in log.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if "mIoU" in entry:
                found = {
                    key.removeprefix("stroke/"): value
                    for key, value in entry.items()
                    if key == "mIoU" or key.startswith("stroke/")
                }
    return found


def openmoji_baselines(folder: Path) -> dict[str, dict[str, float]]:
    """The majority class, and linear models of a pixel and of its 9x9 neighbourhood."""
    sketches = {split: read_pairs(folder, split) for split in ("train", "val")}
    classes = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["classes"]
    generator = np.random.default_rng(0)
    drawn = [(image, labels, sample(labels, generator)) for image, labels in sketches["train"]]
    targets = np.concatenate([labels[points] for _, labels, points in drawn])
    majority = np.bincount(np.concatenate([labels.ravel() for _, labels in sketches["train"]]))
    rows = {
        "majority class": {
            "mIoU": mean_iou(
                [(np.full_like(m, majority.argmax()), m) for _, m in sketches["val"]], len(classes)
            )
        }
    }
    for side in (1, PATCH):
        inputs = np.concatenate([patches(image, side)[points] for image, _, points in drawn])
        model = fit_linear(inputs, targets)
        predicted = [
            (model.predict(patches(image, side).reshape(-1, side * side)).reshape(m.shape), m)
            for image, m in sketches["val"]
        ]
        rows[f"linear model of {side}x{side} pixels"] = {"mIoU": mean_iou(predicted, len(classes))}
    return rows


def spg_baselines(folder: Path) -> dict[str, dict[str, float]]:
    """The majority part, and a linear model of a point's 9x9 neighbourhood."""
    classes, drawings = spg.load_spg(folder)
    category = stroke_metrics.categories_of(classes)
    counts = torch.zeros(len(classes), dtype=torch.long)
    inputs, targets, judged = [], [], []
    generator = np.random.default_rng(0)
    for drawing in drawings:
        label = torch.from_numpy(drawing.label)
        if drawing.split == "train":
            counts += torch.bincount(label, minlength=len(classes))
        image, _, points = spg.draw(drawing, 128, 2.0)
        columns, rows = points.astype(int).clip(0, 127).T
        around = patches(image, PATCH)[rows, columns]
        if drawing.split == "train":
            chosen = generator.permutation(len(label))[:20]
            inputs.append(around[chosen])
            targets.append(drawing.label[chosen])
        else:
            judged.append((around, label, torch.from_numpy(drawing.stroke)))
    model = fit_linear(np.concatenate(inputs), np.concatenate(targets))

    def judge(scores_of: object) -> dict[str, float]:
        total, known = stroke_metrics.Tally(), stroke_metrics.Tally()
        for around, label, stroke in judged:
            scores = scores_of(around)
            total += stroke_metrics.tally(scores.argmax(1), label, stroke)
            scores = scores.masked_fill(category != category[label[0]], -torch.inf)
            known += stroke_metrics.tally(scores.argmax(1), label, stroke)
        shares = (total.point_accuracy, total.stroke_accuracy)
        shares += (known.point_accuracy, known.stroke_accuracy)
        return dict(zip(("P", "C", "P_known", "C_known"), (100 * s for s in shares), strict=True))

    order = [int(index) for index in model[-1].classes_]

    def linear(around: np.ndarray) -> torch.Tensor:
        scores = torch.full((len(around), len(classes)), -torch.inf, dtype=torch.float64)
        scores[:, order] = torch.from_numpy(model.decision_function(around))
        return scores

    return {
        "majority part": judge(lambda around: counts.double().expand(len(around), -1)),
        f"linear model of {PATCH}x{PATCH} pixels": judge(linear),
    }


def read_pairs(folder: Path, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Grey pictures and masks of a split."""
    return [
        (
            np.array(Image.open(path)),
            np.array(Image.open(folder / "annotations" / split / path.name)),
        )
        for path in sorted((folder / "images" / split).glob("*.png"))
    ]


def sample(labels: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of some labelled pixels."""
    rows, columns = np.nonzero(labels != IGNORED)
    chosen = generator.permutation(len(rows))[:SAMPLES_PER_SKETCH]
    return rows[chosen], columns[chosen]


def patches(image: np.ndarray, side: int) -> np.ndarray:
    """Darkness around every pixel, ``[H, W, side * side]``."""
    dark = np.pad(1 - image.mean(-1) / 255, side // 2)
    windows = np.lib.stride_tricks.sliding_window_view(dark, (side, side))
    return windows.reshape(*image.shape[:2], side * side)


def fit_linear(inputs: np.ndarray, targets: np.ndarray) -> object:
    """Multinomial linear model by stochastic gradient descent."""
    classifier = SGDClassifier(loss="log_loss", random_state=0, max_iter=20, tol=1e-4)
    return make_pipeline(StandardScaler(), classifier).fit(inputs, targets)


def mean_iou(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> float:
    """Mean over classes of intersection over union, in percent; counts are summed over pictures."""
    confusion = np.zeros((classes, classes), np.int64)
    for predicted, labels in pairs:
        valid = labels != IGNORED
        index = labels[valid].astype(int) * classes + predicted[valid]
        confusion += np.bincount(index, minlength=classes**2).reshape(classes, classes)
    hit = confusion.diagonal()
    return float(100 * (hit / (confusion.sum(0) + confusion.sum(1) - hit)).mean())


if __name__ == "__main__":
    main()
