"""Classifier for frozen features: pooling, normalisation over images, linear layer."""

from __future__ import annotations

from typing import Any

from timm.layers import ClassifierHead
from timm.models import register_notrace_module
from torch import Tensor, nn


# Its check reads the batch's length, which torch.fx cannot trace.
@register_notrace_module
class _BatchNorm(nn.BatchNorm1d):
    """Batch norm that says how a batch of one image is mended."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) < 2:
            raise ValueError(
                "training normalises over the batch and needs at least two images, got "
                f"{len(x)}. Drop the last batch or call eval()."
            )
        normalised: Tensor = super().forward(x)
        return normalised


class NormClassifierHead(ClassifierHead):  # type: ignore[misc]
    """timm's classifier head with a batch norm without parameters before the linear layer.

    Pooled features of frozen networks share a large mean over all images, which hides what tells
    images apart. Linear probes therefore normalise over the batch (MAE, appendix A.1). Training
    needs at least two images in a batch. Without classifier, pooled features are left as they are.

    Args: see `timm.layers.ClassifierHead`.
    """

    def __init__(
        self, in_features: int, num_classes: int, pool_type: str = "avg", drop_rate: float = 0.0
    ) -> None:
        super().__init__(in_features, num_classes, pool_type, drop_rate)
        self._reset_norm(num_classes)

    def reset(self, num_classes: int, pool_type: str | None = None, **options: Any) -> None:
        """Replace the classifier; see `timm.layers.ClassifierHead.reset`."""
        super().reset(num_classes, pool_type, **options)
        self._reset_norm(num_classes, device=options.get("device"), dtype=options.get("dtype"))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map ``[B, C, h, w]`` to logits, or to pooled features ``[B, C]``.

        The norm belongs to the classifier: logits are ``fc(norm(pooled))``.
        """
        pooled: Tensor = self.global_pool(x)
        if pre_logits:
            return pooled
        logits: Tensor = self.fc(self.drop(self.norm(pooled)))
        return logits

    def _reset_norm(self, num_classes: int, **factory: Any) -> None:
        classifies = num_classes > 0 and bool(self.global_pool.pool_type)
        self.norm: nn.Module = nn.Identity()
        if classifies:
            self.norm = _BatchNorm(self.num_features, affine=False, **factory)
        self.norm.train(self.training)
