"""Heads on one feature map: an embedding for retrieval, logits for recognition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchfusion_plugins.heads.cells import pool_to_grid
from sketchfusion_plugins.heads.ridge import RidgeClassifier

# Of scores of -1 to 1: what five-fold cross-validation on OpenMoji's training part asked for.
RIDGE_SCALE = 5.0


class EmbeddingHead(nn.Module):
    """Unit embedding of a feature map.

    The map is averaged on a small grid, which keeps where things are: what sketches of the same
    class differ in and fine-grained retrieval needs. Cells are normalised over channels, so an
    embedding depends on no other image: sketches and photos come in batches of their own.

    Args:
        channels: Channels of the map.
        dim: Width of the embedding.
        grid: Side of the grid; 1 is global average pooling.

    Raises:
        ValueError: An argument below 1.
    """

    def __init__(self, channels: int, dim: int = 256, grid: int = 4) -> None:
        super().__init__()
        if min(channels, dim, grid) < 1:
            raise ValueError(
                f"expected channels, dim and grid of at least 1, got {channels}, {dim} and {grid}."
            )
        self.channels, self.grid = channels, grid
        self.norm = nn.LayerNorm(channels)
        self.projection = nn.Linear(channels * grid * grid, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[B, C, h, w]`` of any size to float32 ``[B, dim]`` of length 1, under autocast too.

        Raises:
            ValueError: Wrong rank or channels.
        """
        _check_map(features, self.channels)
        with torch.autocast(features.device.type, enabled=False):
            cells = pool_to_grid(features.to(self.projection.weight.dtype), self.grid)
            cells = self.norm(cells.flatten(2).mT)
            return F.normalize(self.projection(cells.flatten(1)).float(), dim=1)


class ClassifierHead(nn.Module):
    """Linear probe on features pooled on a small grid.

    Pooled features of frozen networks share a large mean over all images, which hides what tells
    images apart. Like other linear probes (MAE, appendix A.1) this one normalises over the batch,
    without learned parameters; training needs two images in a batch.

    Args:
        channels: Channels of the map.
        classes: Number of classes.
        dropout: Share of pooled features dropped in training, 0..1.
        grid: Side of the grid; 1 is global average pooling, which forgets where things are.

    Raises:
        ValueError: Channels, classes or grid below 1.
    """

    def __init__(self, channels: int, classes: int, dropout: float = 0.0, grid: int = 1) -> None:
        super().__init__()
        if min(channels, classes, grid) < 1:
            raise ValueError(
                f"expected channels, classes and grid of at least 1, got {channels}, {classes} and "
                f"{grid}."
            )
        self.channels, self.grid = channels, grid
        self.norm = nn.BatchNorm1d(channels * grid * grid, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels * grid * grid, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[B, C, h, w]`` of any size to float32 logits ``[B, classes]``, under autocast too.

        Raises:
            ValueError: Wrong rank or channels, or one image in training.
        """
        if self.training and len(features) < 2:
            raise ValueError(
                "training normalises over the batch and needs at least two images, got one. "
                "Drop the last batch or call eval()."
            )
        pooled = self.pool(features)
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.linear(self.dropout(self.norm(pooled)))
            return logits.float()

    def pool(self, features: Tensor) -> Tensor:
        """What is classified: ``[B, C * grid * grid]`` of a map ``[B, C, h, w]``.

        Raises:
            ValueError: Wrong rank or channels.
        """
        _check_map(features, self.channels)
        features = features.to(self.linear.weight.dtype)
        return pool_to_grid(features, self.grid).flatten(1)

    @torch.no_grad()
    def fit(self, pooled: Tensor, labels: Tensor) -> None:
        """Become the ridge classifier of some images, in closed form; scores are scaled to logits.

        Args:
            pooled: ``[N, C * grid * grid]``, see `pool`.
            labels: ``[N]``, 0..classes - 1.

        Raises:
            ModuleNotFoundError: scikit-learn is not installed.
            ValueError: Fewer than two classes among the labels.
        """
        classes = len(self.linear.weight)
        ridge = RidgeClassifier.fit(pooled.cpu().double().numpy(), labels.cpu().numpy(), classes)
        mean, deviation, weight, bias = (
            torch.from_numpy(values)
            for values in (ridge.mean, ridge.deviation, ridge.weight, ridge.bias)
        )
        variance = deviation**2
        self.norm.load_state_dict({"running_mean": mean, "running_var": variance}, strict=False)
        # The norm divides by a little more than the deviation.
        weight = weight * ((variance + self.norm.eps).sqrt() / deviation)
        self.linear.weight.copy_(RIDGE_SCALE * weight)
        # A class without images is as unlikely as a wrong one.
        self.linear.bias.copy_(RIDGE_SCALE * bias.clamp(min=-1))


def _check_map(features: Tensor, channels: int) -> None:
    if features.ndim != 4 or features.shape[1] != channels:
        raise ValueError(
            f"expected a feature map [B, {channels}, h, w], got {list(features.shape)}."
        )
