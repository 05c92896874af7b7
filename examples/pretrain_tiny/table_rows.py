"""The rows of the table, and the features that they judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from sources import SIZE
from torch import Tensor

from sketchfusion_plugins.features import (
    Features,
    HogFeatures,
    PixelFeatures,
    RandomFeatures,
)
from sketchfusion_plugins.hub import BUNDLED_WEIGHTS
from sketchfusion_plugins.inference.models import open_model
from sketchfusion_plugins.presets import preset
from sketchfusion_plugins.tasks.retrieval import Retrieval


class PooledHog(HogFeatures):
    """HOG with the pooling of the other rows: 4x4 means of its map."""

    describe = Features.describe


class Enlarged(Features):
    """Another row's features of images enlarged, so that a cell covers less of what is drawn.

    Args:
        features: The other row's.
        factor: How much larger.
    """

    def __init__(self, features: Features, factor: float) -> None:
        super().__init__()
        self.features, self.factor = features, factor
        self.channels = features.channels
        if hasattr(features, "embed"):
            self.embed = lambda image: features.embed(self._enlarge(image))

    def forward(self, image: Tensor) -> Tensor:
        """See `Features.forward`."""
        result: Tensor = self.features(self._enlarge(image))
        return result

    def _enlarge(self, image: Tensor) -> Tensor:
        return F.interpolate(image, scale_factor=self.factor, mode="bilinear")


PLAIN: Mapping[str, type[Features]] = {
    "chance": RandomFeatures,
    "pixels": PixelFeatures,
    "HOG": HogFeatures,
    "HOG, 4x4": PooledHog,
}
NEIGHBOURS = "HOG, 10-NN"
UNTRAINED = ("CLIP", "SD", "SD, stride 8", "SD, stride 16", "SD, stride 32", "SD + CLIP")
TRAINED = {
    "CLIP + adapters": "clip",
    "SD + adapters": "sd",
    "SD + CLIP + adapters": "concatenated",
    "fused": "fused",
    "fused, random foundations": "random",
}
# The package's weights, with the embedding head that trained with them and without it.
SHIPPED = {
    "fused, as shipped": "sketchfusion/tiny-retrieval",
    "fused, as shipped, pooled": "sketchfusion/tiny",
}
# Drawings and pictures enlarged from 128 px, canvases from 256 px in proportion.
LARGE = 192
ENLARGED = {
    f"{row}, {LARGE} px": row for row in ("HOG, 4x4", "CLIP", "SD + CLIP", "fused, as shipped")
}
ROWS = (*PLAIN, NEIGHBOURS, *UNTRAINED, *TRAINED, *SHIPPED, *ENLARGED)


def row_features(row: str, seed: int, work: Path) -> Features:
    """Features of a row.

    Raises:
        FileNotFoundError: It was not trained or exported yet.
    """
    if row in ENLARGED:
        return Enlarged(row_features(ENLARGED[row], seed, work), LARGE / SIZE).eval()
    if row in PLAIN or row == NEIGHBOURS:
        plain: Features = PLAIN.get(row, HogFeatures)()
        return plain
    if row in SHIPPED:
        return _shipped_features(SHIPPED[row])
    from fusion_models import build_untrained, load_trained

    if row in TRAINED:
        features: Features = load_trained(weights_folder(row, seed, work))
        return features
    if not weights_folder(row, seed, work).is_dir():
        raise FileNotFoundError(f"{work / 'export'} is missing; run export.py first.")
    untrained: Features = build_untrained(row, work / "export")
    return untrained


def _shipped_features(name: str) -> Features:
    from fusion_models import TrainedFeatures

    opened = open_model(name)
    if isinstance(opened, Retrieval):
        return TrainedFeatures(opened.features, opened.head).eval()
    assert isinstance(opened, Features)
    return opened


def weights_folder(row: str, seed: int, work: Path) -> Path:
    """Where a row's weights lie."""
    if row in SHIPPED:
        return BUNDLED_WEIGHTS[SHIPPED[row]].parent
    return work / "fusion" / f"{TRAINED[row]}-{seed}" if row in TRAINED else work / "export"


def fingerprint(row: str, seed: int, work: Path) -> str:
    """Digest of all weights and settings that a row depends on."""
    row = ENLARGED.get(row, row)
    if row in PLAIN or row == NEIGHBOURS:
        return ""
    # Rows are rebuilt on the preset of today.
    digest = hashlib.sha256(json.dumps(preset("tiny").to_dict()).encode())
    folder = weights_folder(row, seed, work)
    folders = {folder} if row in SHIPPED else {folder, work / "export"}
    files = [path for folder in folders for path in folder.rglob("*.*")]
    for path in sorted(path for path in files if path.suffix in (".json", ".safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
