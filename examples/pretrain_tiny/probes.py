"""Linear probes: what can be read off features that stay as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SHRINKAGES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 500, 2048, 1e-2, 1e-3


def discriminant_scores(fit: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
    """Scores ``[M, classes]`` of linear discriminant analysis with a shrunken covariance.

    With few items of each of many classes, regression on one-hot labels is far worse, and softmax
    regression somewhat. The shrinkage is the best on the last item of every class that has three
    or more; then all items are fitted.

    Args:
        fit: ``[N, D]``.
        labels: ``[N]``.
        test: ``[M, D]``.
        classes: Number of classes; those without items score lowest.
    """
    validation = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        own = (labels == label).nonzero()[:, 0]
        if len(own) >= 3:
            validation[own[-1]] = True
    chosen = SHRINKAGES[len(SHRINKAGES) // 2]
    if validation.any():
        known = labels[~validation]
        rest = discriminant(fit[~validation], known, fit[validation], classes, SHRINKAGES)
        right = [(scores.argmax(1) == labels[validation]).sum() for scores in rest]
        chosen = SHRINKAGES[int(torch.stack(right).argmax())]
    return discriminant(fit, labels, test, classes, (chosen,))[0]


def discriminant(
    fit: Tensor, labels: Tensor, test: Tensor, classes: int, shrinkages: Sequence[float]
) -> list[Tensor]:
    """Scores ``[M, classes]`` for every shrinkage ``s``, all classes being equally likely.

    The covariance within classes is ``(1 - s) S + s m I``, where ``m`` is the mean variance.

    Args:
        fit: ``[N, D]``.
        labels: ``[N]``.
        test: ``[M, D]``.
        classes: Number of classes.
        shrinkages: Above 0, below 1.
    """
    count, width = fit.shape
    counts = torch.bincount(labels, minlength=classes)
    means = fit.new_zeros(classes, width).index_add_(0, labels, fit)
    means /= counts.clamp(min=1)[:, None]
    within = fit - means[labels]
    variance = float(within.square().mean())
    small = width <= count
    # Single precision for the large product alone: it takes most of the time.
    gram = (within.T @ within if small else within @ within.T).double()
    means, within, test = means.double(), within.double(), test.double()
    identity = torch.eye(len(gram), dtype=torch.float64)
    scores = []
    for s in shrinkages:
        ridge = count * s * variance / (1 - s)
        factor = torch.linalg.cholesky(gram + ridge * identity)
        if small:
            weight = torch.cholesky_solve(means.T, factor) * count / (1 - s)
        else:
            # Woodbury's identity, in as many dimensions as there are items.
            inner = torch.cholesky_solve(within @ means.T, factor)
            weight = (means.T - within.T @ inner) / (s * variance)
        own = test @ weight - 0.5 * (means.T * weight).sum(0)
        scores.append(own.masked_fill(counts == 0, -torch.inf).float())
    return scores


class LinearProbe:
    """Softmax regression on standardised descriptors, by a fixed number of AdamW steps.

    Args:
        fit: ``[N, D]``.
        labels: ``[N]``.
        classes: Number of classes.
        allowed: Boolean ``[N, classes]``: classes among which each item is told apart; None for
            all of them.
    """

    def __init__(
        self, fit: Tensor, labels: Tensor, classes: int, allowed: Tensor | None = None
    ) -> None:
        mean, deviation = fit.mean(0), fit.std(0).clamp(min=1e-6)
        fit = (fit - mean) / deviation
        weight = torch.zeros(classes, fit.shape[1], requires_grad=True)
        bias = torch.zeros(classes, requires_grad=True)
        optimizer = torch.optim.AdamW([weight, bias], weight_decay=WEIGHT_DECAY)
        generator = torch.Generator().manual_seed(0)
        for step in range(STEPS):
            rate = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            optimizer.param_groups[0]["lr"] = rate
            rows = torch.randint(len(fit), (min(BATCH, len(fit)),), generator=generator)
            logits = F.linear(fit[rows], weight, bias)
            if allowed is not None:
                logits = logits.masked_fill(~allowed[rows], -torch.inf)
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
        # Standardising is folded into the weights, so that maps need none.
        self.weight = weight.detach() / deviation
        self.bias = bias.detach() - self.weight @ mean

    def __call__(self, descriptors: Tensor) -> Tensor:
        """Logits ``[N, classes]`` of ``[N, D]``."""
        return F.linear(descriptors, self.weight, self.bias)

    def maps(self, maps: Tensor) -> Tensor:
        """Logits ``[B, classes, h, w]`` of maps ``[B, D, h, w]``."""
        return F.conv2d(maps, self.weight[:, :, None, None], self.bias)
