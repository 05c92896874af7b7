"""The fused model of the last stage, and the controls that it is held against.

Every kind has the same frozen foundations (but ``random``), the same bottlenecks on top, the same
heads and the same training; they differ in what the bottlenecks see.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from foundations import calibrate, calibration_pictures, load_foundations
from safetensors.torch import load_file
from torch import Tensor, nn

from sketchfusion_plugins.aggregation import AdaptiveAggregation, cells
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.features import (
    ClipFeatures,
    ConcatenatedFeatures,
    DiffusionFeatures,
    Features,
    FusedFeatures,
)
from sketchfusion_plugins.files import write_safetensors, write_text
from sketchfusion_plugins.heads.embedding import EmbeddingHead
from sketchfusion_plugins.tasks.load import load_task
from sketchfusion_plugins.tasks.retrieval import Retrieval

KINDS = ("clip", "sd", "concatenated", "fused", "random")
STRIDE = 8
# Where foundations lie in a model's names.
FROZEN = ("features.encoder.", "features.frozen.")
# As wide as the wheel's budget allows: the head ships.
DIM = 128
CLASSIFIER_SCALE = 16.0


class FrozenMaps(nn.Module):
    """Stable Diffusion's levels and CLIP's tokens; those of the last two batches are kept.

    Several models that train side by side on the same images then cost one pass.

    Args:
        encoder: Encoder whose foundations are used.
    """

    def __init__(self, encoder: SketchFusionEncoder) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self._last: deque[tuple[Tensor, dict[str, list[Tensor]]]] = deque(maxlen=2)

    def forward(self, image: Tensor) -> dict[str, list[Tensor]]:
        """Maps by part, ``"sd"`` and ``"clip"``, of images ``[B, 3, H, W]``."""
        for known, maps in self._last:
            if known is image:
                return maps
        with torch.no_grad():
            levels = list(self.encoder.forward_levels(image, fuse=False).maps)
            maps = {"sd": levels, "clip": [self.encoder.forward_tokens(image)]}
        self._last.append((image, maps))
        return maps


class LevelFeatures(Features):
    """One of Stable Diffusion's own levels.

    Args:
        encoder: Encoder whose UNet is used.
        stride: Stride of the level.
    """

    def __init__(self, encoder: SketchFusionEncoder, stride: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.stride = stride
        strides = [block.stride for block in encoder.level_blocks]
        self.level = strides.index(stride)
        self.channels = encoder.level_blocks[self.level].channels

    def forward(self, image: Tensor) -> Tensor:
        """See `Features.forward`."""
        return F.normalize(self.encoder.forward_levels(image, fuse=False).maps[self.level], dim=1)


UNTRAINED = {
    "CLIP": ClipFeatures,
    "SD": DiffusionFeatures,
    "SD + CLIP": ConcatenatedFeatures,
    **{f"SD, stride {stride}": partial(LevelFeatures, stride=stride) for stride in (8, 16, 32)},
}


class AdaptedFeatures(Features):
    """Bottlenecks on Stable Diffusion's levels, CLIP's tokens, or both, without injection.

    Args:
        frozen: What they see.
        parts: Some of ``"sd"`` and ``"clip"``.
    """

    def __init__(self, frozen: FrozenMaps, parts: Sequence[str]) -> None:
        super().__init__()
        encoder = frozen.encoder
        aggregation = encoder.config.aggregation
        assert aggregation is not None
        self.frozen = frozen
        self.parts = tuple(parts)
        self.channels = aggregation.out_channels
        widths = [block.channels for block in encoder.level_blocks] if "sd" in parts else []
        widths += [encoder.semantic.channels] if "clip" in parts else []
        self.aggregator = AdaptiveAggregation(
            widths, self.channels, norm_groups=aggregation.norm_groups
        )

    def forward(self, image: Tensor) -> Tensor:
        """See `Features.forward`."""
        frozen = self.frozen(image)
        maps = [level for part in self.parts for level in frozen[part]]
        result: Tensor = self.aggregator(maps, cells((image.shape[-2], image.shape[-1]), STRIDE))
        return result


class CosineClassifier(nn.Module):
    """Logits by cosine similarity with learned directions; unlike batch norms it bears few images.

    Args:
        dim: Width of the unit embeddings.
        classes: Number of classes.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, dim))

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of ``[B, dim]``."""
        return CLASSIFIER_SCALE * embedding @ F.normalize(self.weight, dim=1).mT


class GeneralModel(nn.Module):
    """Features, an embedding of them, and the classifiers that training needs.

    Args:
        features: What is trained.
        subgroups: Number of OpenMoji's subgroups.
        sketches: Number of sketch classes.
    """

    def __init__(self, features: Features, subgroups: int, sketches: int) -> None:
        super().__init__()
        self.features = features
        self.head = EmbeddingHead(features.channels, DIM)
        self.subgroups = CosineClassifier(DIM, subgroups)
        self.sketches = CosineClassifier(DIM, sketches)


class TrainedFeatures(Features):
    """Features of a trained model, with its embedding for retrieval."""

    def __init__(self, features: Features, head: EmbeddingHead) -> None:
        super().__init__()
        self.features, self.head = features, head
        self.channels = features.channels

    def forward(self, image: Tensor) -> Tensor:
        """See `Features.forward`."""
        result: Tensor = self.features(image)
        return result

    def embed(self, image: Tensor) -> Tensor:
        """Unit embeddings ``[B, DIM]`` for retrieval."""
        embedding: Tensor = self.head(self.features(image))
        return embedding


def build(kind: str, frozen: FrozenMaps, work: Path, *, seed: int = 0, **loading: Any) -> Features:
    """Trainable features of a kind.

    Args:
        kind: One of ``KINDS``.
        frozen: Maps of trained foundations, for the kinds without injection.
        work: Folder that `data.py` filled.
        seed: Of random foundations.
        loading: Arguments of `load_foundations`, for the kinds with injection.

    Raises:
        ValueError: Unknown kind.
    """
    parts = {"clip": ("clip",), "sd": ("sd",), "concatenated": ("sd", "clip")}
    if kind in parts:
        return AdaptedFeatures(frozen, parts[kind])
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(KINDS)}.")
    is_random = kind == "random"
    encoder = load_foundations(**loading, random_seed=seed if is_random else None)
    if is_random:
        calibrate(encoder, calibration_pictures(work))
    return FusedFeatures(encoder)


def begin_from(model: GeneralModel, checkpoint: str) -> None:
    """Give a fused model the injection, aggregation and embedding head of a checkpoint.

    Args:
        model: A fused model.
        checkpoint: Folder or id of a checkpoint of the task retrieval.

    Raises:
        CheckpointError: The checkpoint is damaged or holds no task.
        ValueError: It is of another task.
        RuntimeError: Its parts have other shapes.
    """
    task = load_task(checkpoint)
    if not isinstance(task, Retrieval):
        raise ValueError(f"{checkpoint} is of the task {task.name}; give one of retrieval.")
    assert isinstance(model.features, FusedFeatures)
    own, given = model.features.encoder, task.features.encoder
    for part, other in (
        (own.injector, given.injector),
        (own.aggregator, given.aggregator),
        (model.head, task.head),
    ):
        assert part is not None and other is not None
        part.load_state_dict(other.state_dict())


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What training has changed: trainable parameters and running statistics of the heads."""
    kept = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = model.state_dict()
    return {
        name: value for name, value in state.items() if name in kept or not name.startswith(FROZEN)
    }


def save(model: GeneralModel, folder: Path, about: Mapping[str, Any]) -> None:
    """Write what was trained and how."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(trained_state(model), folder / "model.safetensors")
    write_text(json.dumps(dict(about), indent=1) + "\n", folder / "about.json")


def load_trained(folder: Path) -> TrainedFeatures:
    """Features that `fusion.py` has trained.

    Raises:
        FileNotFoundError: Training has not finished.
    """
    if not (folder / "about.json").is_file():
        raise FileNotFoundError(f"{folder} holds no trained model; run fusion.py first.")
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    loading = {"foundations": Path(about["foundations"]), "changes": about["changes"]}
    torch.manual_seed(about["seed"])
    frozen = FrozenMaps(load_foundations(**loading))
    features = build(about["kind"], frozen, Path(about["work"]), seed=about["seed"], **loading)
    model = GeneralModel(features, about["subgroups"], about["sketches"])
    state = load_file(folder / "model.safetensors")
    result = model.load_state_dict(state, strict=False)
    if result.unexpected_keys:
        raise ValueError(f"{folder} does not fit its own description: {result.unexpected_keys}.")
    return TrainedFeatures(model.features, model.head).eval()


def build_untrained(name: str, foundations: Path) -> Features:
    """A baseline by name.

    Raises:
        ValueError: Unknown name.
    """
    if name not in UNTRAINED:
        raise ValueError(f"unknown baseline {name!r}; choose one of {', '.join(UNTRAINED)}.")
    return UNTRAINED[name](load_foundations(foundations)).eval()
