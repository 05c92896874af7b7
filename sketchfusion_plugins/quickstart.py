"""First use: train and judge a small model on real drawings, with nothing but the package.

Drawings are OpenMoji's black line layer and colour pictures, classes are Unicode's subgroups of
emoji. Training sees lines and pictures of its concepts, the judgement is on line drawings of the
held-out ones, which bundled foundations have not seen either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sketchfusion_plugins.config import Weights
from sketchfusion_plugins.metrics.intervals import wilson

if TYPE_CHECKING:
    from sketchfusion_plugins.data.openmoji import Concept

CLASSES = (
    "animal-bird",
    "animal-mammal",
    "clothing",
    "drink",
    "food-fruit",
    "food-prepared",
    "place-building",
    "sport",
    "tool",
    "transport-ground",
)


@dataclass(frozen=True)
class QuickstartReport:
    """What a run measured, all on held-out line drawings.

    Attributes:
        model: timm name.
        foundations: Weights of the frozen foundations, ``"pretrained"`` or ``"random"``.
        seed: Seed of the training and its augmentation.
        classes: Number of classes.
        train_drawings: Drawings and pictures trained on.
        test_drawings: Line drawings judged on.
        chance: Share of the most frequent class among the test drawings.
        accuracy: Share of right answers by method.
        interval: 95 % Wilson interval of every accuracy.
        seconds: Training time.
        trainable_parameters: Number of trained parameters.
        total_parameters: Number of all parameters.
    """

    model: str
    foundations: str
    seed: int
    classes: int
    train_drawings: int
    test_drawings: int
    chance: float
    accuracy: dict[str, float]
    interval: dict[str, tuple[float, float]]
    seconds: float
    trainable_parameters: int
    total_parameters: int


def _are_close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3)


def run_quickstart(
    out: Path,
    *,
    model_name: str = "sketchfusion_tiny",
    weights: Weights = "pretrained",
    epochs: int = 6,
    batch_size: int = 32,
    learning_rate: float = 4e-3,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> QuickstartReport:
    """Render, train, judge, save, reload and draw.

    Writes ``adapters/`` (safetensors and config), ``report.json`` and ``features.png`` to ``out``.
    Training starts from what timm gives: trained adapters with pretrained weights that have some,
    otherwise fresh ones.

    Raises:
        ModuleNotFoundError: The extra ``quickstart`` is not installed.
        OSError: ``out`` cannot be made; this too is known before anything is trained.
        RuntimeError: The reloaded model answers differently from the saved one.
    """
    import time

    import timm

    from sketchfusion_plugins.files import write_text
    from sketchfusion_plugins.viz.figures import check_figure

    # What cannot be written is known before minutes of training.
    check_figure(out / "features.png")
    (out / "adapters").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)

    def build() -> Any:
        model = timm.create_model(
            model_name, pretrained=weights == "pretrained", num_classes=len(CLASSES)
        )
        return model.to(device)

    model = build()
    train, test, test_concepts = load_drawings(model.default_cfg["input_size"][-1], progress)
    accuracy = untrained_accuracy(model, train, test, batch_size, seed)
    start = time.perf_counter()
    train_classifier(
        model,
        train,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        progress=progress,
    )
    seconds = time.perf_counter() - start
    logits = predict(model, test.images, batch_size)
    accuracy["fused, injection and aggregation trained"] = float(
        (logits.argmax(1).numpy() == test.labels).mean()
    )

    model.save_pretrained(out / "adapters")
    reloaded = build()
    reloaded.load_pretrained(out / "adapters")
    answers = predict(reloaded, test.images, batch_size)
    # GPUs may choose other kernels for the second model.
    alike = torch.equal if torch.device(device).type == "cpu" else _are_close
    if not alike(answers, logits):
        raise RuntimeError(f"the model reloaded from {out / 'adapters'} answers differently.")
    draw_features(reloaded, test_concepts, test.images, out / "features.png")

    count = model.encoder.trainable_parameters()
    report = QuickstartReport(
        model=model_name,
        foundations=weights,
        seed=seed,
        classes=len(CLASSES),
        train_drawings=len(train.images),
        test_drawings=len(test.images),
        chance=float(np.bincount(test.labels).max() / len(test.labels)),
        accuracy=accuracy,
        interval={name: wilson(value, len(test.labels)) for name, value in accuracy.items()},
        seconds=seconds,
        trainable_parameters=count.trainable,
        total_parameters=count.total,
    )
    write_text(json.dumps(asdict(report), indent=2) + "\n", out / "report.json")
    return report


@dataclass(frozen=True, eq=False)
class Drawings:
    """Drawings with their classes.

    Attributes:
        images: ``[N, H, W, 3]``, uint8.
        labels: Places in `CLASSES`, ``[N]``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def load_drawings(size: int, progress: bool = True) -> tuple[Drawings, Drawings, list[Concept]]:
    """Drawings and pictures to train on, line drawings to judge on, and the latter's concepts.

    Args:
        size: Side in pixels.
        progress: Show a progress bar when standard error is a terminal.
    """
    from sketchfusion_plugins.data.openmoji import held_out_concepts, load_concepts, render

    concepts = [concept for concept in load_concepts() if concept.subgroup in CLASSES]
    hidden = held_out_concepts()
    train = [concept for concept in concepts if concept.hexcode not in hidden]
    test = [concept for concept in concepts if concept.hexcode in hidden]
    images = np.concatenate([render(train, size, layer, progress) for layer in ("line", "color")])
    labels, test_labels = (
        np.array([CLASSES.index(concept.subgroup) for concept in part]) for part in (train, test)
    )
    judged = Drawings(render(test, size, "line", progress), test_labels)
    return Drawings(images, np.concatenate([labels, labels])), judged, test


def untrained_accuracy(
    model: nn.Module, train: Drawings, test: Drawings, batch_size: int, seed: int
) -> dict[str, float]:
    """Accuracy by what logistic regression is fitted to: pixels, HOG, the model's features."""
    from sketchfusion_plugins import baselines

    def fused(images: NDArray[np.uint8]) -> NDArray[Any]:
        return pooled_features(model, images, batch_size)

    described: dict[str, Callable[[NDArray[np.uint8]], NDArray[Any]]] = {
        "pixels": baselines.pixel_features,
        "HOG": baselines.hog_features,
        "fused, before training": fused,
    }
    return {
        f"{name} + logistic regression": baselines.logistic_accuracy(
            describe(train.images), train.labels, describe(test.images), test.labels, seed
        )
        for name, describe in described.items()
    }


def train_classifier(
    model: nn.Module,
    drawings: Drawings,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: bool = True,
) -> None:
    """Train what is trainable with cross entropy on randomly flipped and warped drawings.

    Args:
        model: Classifier of normalised images.
        drawings: What to train on.
        epochs: Passes over the images.
        batch_size: Images per step.
        learning_rate: Peak of a one-cycle schedule.
        seed: Seed of order and augmentation.
        progress: Show a progress bar when standard error is a terminal.
    """
    from torchvision.transforms import v2 as transforms
    from tqdm import tqdm

    torch.manual_seed(seed)
    device = next(model.parameters()).device
    augment = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomAffine(12, (0.08, 0.08), (0.85, 1.1), fill=255),
        ]
    )
    pixels = torch.from_numpy(drawings.images).permute(0, 3, 1, 2)
    targets = torch.from_numpy(drawings.labels)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.05)
    steps = epochs * -(-len(targets) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps)
    model.train()
    with tqdm(total=steps, desc="training", disable=None if progress else True) as bar:
        for _ in range(epochs):
            for index in torch.randperm(len(targets)).split(batch_size):
                batch = torch.stack([augment(pixels[i]) for i in index.tolist()])
                logits = model(normalise(batch).to(device))
                loss = F.cross_entropy(logits, targets[index].to(device), label_smoothing=0.1)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.2f}")
    model.eval()


@torch.inference_mode()
def predict(model: nn.Module, images: NDArray[np.uint8], batch_size: int) -> Tensor:
    """Logits ``[N, classes]`` on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    batches = torch.from_numpy(images).permute(0, 3, 1, 2).split(batch_size)
    return torch.cat([model(normalise(batch).to(device)).cpu() for batch in batches])


@torch.inference_mode()
def pooled_features(model: Any, images: NDArray[np.uint8], batch_size: int) -> NDArray[Any]:
    """Pooled features before the classifier, ``[N, C]``."""
    model.eval()
    device = next(model.parameters()).device
    batches = torch.from_numpy(images).permute(0, 3, 1, 2).split(batch_size)
    pooled = [
        model.forward_head(model.forward_features(normalise(batch).to(device)), pre_logits=True)
        for batch in batches
    ]
    return torch.cat(pooled).float().cpu().numpy()


@torch.inference_mode()
def draw_features(
    model: Any, concepts: Sequence[Concept], images: NDArray[np.uint8], path: Path, rows: int = 5
) -> None:
    """Write a picture of drawings beside PCA maps of Stable Diffusion, CLIP and fused features."""
    from sketchfusion_plugins import viz

    chosen = np.linspace(0, len(images) - 1, rows).astype(int)
    device = next(model.parameters()).device
    batch = normalise(torch.from_numpy(images[chosen]).permute(0, 3, 1, 2)).to(device)
    encoder = model.encoder.eval()
    figure = viz.feature_sheet(
        {
            "drawing": images[chosen],
            "diffusion (stride 8)": viz.pca_rgb(encoder.forward_levels(batch, fuse=False).maps[0]),
            "CLIP": viz.pca_rgb(encoder.forward_tokens(batch)),
            "fused": viz.pca_rgb(encoder(batch)),
        },
        [concepts[index].name for index in chosen],
    )
    viz.save_figure(figure, path)


def normalise(pixels: Tensor) -> Tensor:
    """Pixels 0..255 of any dtype to -1..1, float32."""
    return pixels.float() / 127.5 - 1.0
