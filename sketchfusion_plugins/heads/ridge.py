"""A linear classifier in closed form: a probe of features, or where a head's training starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RidgeClassifier:
    """Scores ``(x - mean) / deviation @ weight.T + bias``, about 1 for the right class, -1 else.

    Attributes:
        mean: ``[D]`` of the descriptors it was fitted to.
        deviation: Standard deviations ``[D]``; 1 where there is none.
        weight: ``[classes, D]``; 0 for classes that were missing.
        bias: ``[classes]``; minus infinity for classes that were missing.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    @classmethod
    def fit(cls, descriptors: NDArray[Any], labels: NDArray[Any], classes: int) -> RidgeClassifier:
        """Fit to standardised descriptors; the penalty has the least leave-one-out error.

        Args:
            descriptors: ``[N, D]``.
            labels: ``[N]``, 0..classes - 1.
            classes: Number of classes.

        Raises:
            ModuleNotFoundError: scikit-learn is not installed.
            ValueError: Fewer than two classes among the labels.
        """
        try:
            from sklearn.linear_model import RidgeClassifierCV
            from sklearn.preprocessing import StandardScaler
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "scikit-learn is needed to fit a classifier in closed form: "
                'pip install "sketchfusion-plugins[tasks]"'
            ) from error

        found = np.unique(labels)
        if len(found) < 2:
            raise ValueError(f"expected items of at least two classes, got labels {found}.")
        # The conversion has made a copy, which a large part cannot afford a second time.
        scaler = StandardScaler(copy=False)
        standardised = scaler.fit_transform(descriptors.astype(np.float64))
        ridge = RidgeClassifierCV(np.logspace(0, 5, 11)).fit(standardised, labels)
        rows, offsets = np.atleast_2d(ridge.coef_), np.atleast_1d(ridge.intercept_)
        # Of two classes, scikit-learn keeps the second one's scores.
        if len(rows) == 1:
            rows, offsets = np.concatenate([-rows, rows]), np.concatenate([-offsets, offsets])
        weight = np.zeros((classes, descriptors.shape[1]))
        bias = np.full(classes, -np.inf)
        weight[found], bias[found] = rows, offsets
        return cls(scaler.mean_, scaler.scale_, weight, bias)

    def scores(self, descriptors: NDArray[Any]) -> NDArray[np.float64]:
        """Scores ``[M, classes]`` of descriptors ``[M, D]``."""
        standardised = (descriptors.astype(np.float64) - self.mean) / self.deviation
        scores: NDArray[np.float64] = standardised @ self.weight.T + self.bias
        return scores
