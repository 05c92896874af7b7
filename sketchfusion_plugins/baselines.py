"""Descriptors that learn nothing, to compare the encoder's features with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_HOG_CELL = 8
_REGULARISATION = (1e-3, 1e-2, 1e-1, 1.0)


def pixel_features(images: NDArray[np.uint8], side: int = 16) -> NDArray[np.float32]:
    """Darkness of the picture, averaged over the cells of a coarse grid.

    Args:
        images: RGB pictures, uint8 [N, H, W, 3]; H and W need not be multiples of ``side``.
        side: Cells along each axis, at least 1.

    Returns:
        Features, float32 [N, side * side], rows of the grid first; 0 is white, 1 is black.

    Raises:
        ValueError: ``images`` has another shape or type, or ``side`` is below 1.
    """
    if side < 1:
        raise ValueError(f"side is {side}, it must be at least 1")
    return _darkness(images, side).reshape(len(images), side * side)


def hog_features(images: NDArray[np.uint8], size: int = 64) -> NDArray[np.float32]:
    """Histograms of oriented gradients: 9 orientations, 8x8 cells, 2x2 blocks, L2-Hys.

    Source: Dalal and Triggs, Histograms of Oriented Gradients for Human Detection, CVPR 2005.

    Args:
        images: RGB pictures, uint8 [N, H, W, 3].
        size: Side in pixels that pictures are resized to (by area); a multiple of 8, at least 16.

    Returns:
        Features, float32 [N, 36 * (size / 8 - 1) ** 2], values 0..1.

    Raises:
        ModuleNotFoundError: scikit-image is missing.
        ValueError: ``images`` has another shape or type, or ``size`` is not valid.
    """
    if size < 2 * _HOG_CELL or size % _HOG_CELL:
        raise ValueError(
            f"size is {size}, it must be a multiple of {_HOG_CELL} and at least {2 * _HOG_CELL}"
        )
    features = np.empty((len(images), 36 * (size // _HOG_CELL - 1) ** 2), dtype=np.float32)
    for index, picture in enumerate(_darkness(images, size)):
        features[index] = hog_blocks(picture).ravel()
    return features


def hog_blocks(picture: NDArray[Any]) -> NDArray[Any]:
    """Blocks of `hog_features`, of one picture of any size.

    Args:
        picture: Darkness or lightness, [H, W].

    Returns:
        [H // 8 - 1, W // 8 - 1, 2, 2, 9], values 0..1.

    Raises:
        ModuleNotFoundError: scikit-image is missing.
    """
    try:
        from skimage.feature import hog
    except ModuleNotFoundError as error:
        raise _missing("scikit-image") from error
    blocks: NDArray[Any] = hog(
        picture,
        orientations=9,
        pixels_per_cell=(_HOG_CELL, _HOG_CELL),
        cells_per_block=(2, 2),
        block_norm="L2-Hys",
        feature_vector=False,
    )
    return blocks


def logistic_accuracy(
    train_x: ArrayLike, train_y: ArrayLike, test_x: ArrayLike, test_y: ArrayLike, seed: int
) -> float:
    """Test accuracy of logistic regression on standardised features.

    The regularisation strength is chosen by stratified cross-validation (3 folds, 2 where a class
    has only two members) inside the training part; the test part is used once, to score.

    Args:
        train_x: Training features [N, D], finite.
        train_y: Training labels [N], at least two classes with at least two members each.
        test_x: Test features [M, D], finite.
        test_y: Test labels [M]; a label that training did not have counts as an error.
        seed: Shuffles the folds.

    Returns:
        Share of correct predictions, 0..1.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
        ValueError: Shapes disagree, values are not finite, or there are too few labels.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError as error:
        raise _missing("scikit-learn") from error
    _, counts = np.unique(np.asarray(train_y), return_counts=True)
    if len(counts) < 2 or counts.min() < 2:
        raise ValueError("training needs at least two classes with at least two members each")
    # The scaler is inside the pipeline, so that each fold is standardised by its own training part.
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": _REGULARISATION},
        cv=StratifiedKFold(min(3, int(counts.min())), shuffle=True, random_state=seed),
        error_score="raise",
    )
    # The problem is many tiny matrix products, which threads that wait for each other make several
    # times slower.
    with threadpool_limits(1):
        search.fit(train_x, train_y)
    return float(search.score(test_x, test_y))


def _darkness(images: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """Mean darkness over channels, resized by area: float32 [N, side, side], 0 white to 1 black."""
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"images must be uint8 [N, H, W, 3], not {images.dtype} {list(images.shape)}"
        )
    if 0 in images.shape[1:]:
        raise ValueError(f"images are empty: {list(images.shape)}")
    rows = _area_weights(images.shape[1], side)
    columns = _area_weights(images.shape[2], side)
    resized = np.empty((len(images), side, side), dtype=np.float32)
    # One picture at a time: a float copy of a whole data set would need much memory.
    for index, picture in enumerate(images):
        resized[index] = rows @ (1 - picture.mean(axis=-1) / 255) @ columns.T
    return resized


def _area_weights(length: int, cells: int) -> NDArray[np.float64]:
    """Share of each pixel in each cell's mean, [cells, length]; every row sums to 1."""
    edges = np.linspace(0, length, cells + 1)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: NDArray[np.float64] = np.clip(overlap, 0, None) * cells / length
    return weights


def _missing(distribution: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{distribution} is needed for this baseline: "
        'pip install "sketchfusion-plugins[quickstart]"'
    )
