"""Baselines, checked by hand calculation, known invariances and scikit-image itself."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from sketchfusion_plugins.baselines import hog_features, logistic_accuracy, pixel_features
from sketchfusion_plugins.features import HogFeatures
from sketchfusion_plugins.heads.ridge import RidgeClassifier


def _grey(values: np.ndarray) -> np.ndarray:
    """RGB pictures [N, H, W, 3] of grey values [N, H, W]."""
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=-1)


def _noise(count: int, side: int, low: int = 0, high: int = 256) -> np.ndarray:
    return _grey(np.random.default_rng(0).integers(low, high, (count, side, side)))


def test_pixel_features_are_mean_darkness_of_each_cell() -> None:
    picture = np.full((1, 4, 4), 255)
    picture[0, :2, 2:] = 0
    picture[0, 2, 0] = 0
    features = pixel_features(_grey(picture), side=2)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, [[0, 1, 0.25, 0]])


def test_pixel_features_split_pixels_between_cells() -> None:
    picture = np.full((1, 2, 3), 255)
    picture[0, :, 1] = 0
    # Cells are 1.5 pixels wide: each holds half of the black middle column, a third of its area.
    np.testing.assert_allclose(pixel_features(_grey(picture), side=2), [[1 / 3] * 4], rtol=1e-6)


def test_pixel_features_average_channels() -> None:
    picture = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    picture[..., 0] = 255
    np.testing.assert_allclose(pixel_features(picture, side=1), [[2 / 3]], rtol=1e-6)


@pytest.mark.parametrize("shape", [(16, 16), (37, 50), (5, 9)])
def test_pixel_features_keep_the_mean(shape: tuple[int, int]) -> None:
    pictures = _grey(np.random.default_rng(1).integers(0, 256, (3, *shape)))
    features = pixel_features(pictures, side=16)
    assert features.shape == (3, 256)
    expected = 1 - pictures.mean(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(features.mean(axis=1), expected, rtol=1e-5)


def test_hog_features_match_scikit_image() -> None:
    feature = pytest.importorskip("skimage.feature")
    pictures = _noise(2, 64)
    features = hog_features(pictures, size=64)
    assert features.shape == (2, 1764) and features.dtype == np.float32
    # scikit-image's defaults except its 3x3 blocks; the picture itself instead of its darkness,
    # since unsigned gradients do not see an inversion.
    expected = feature.hog(pictures[1, ..., 0] / 255, cells_per_block=(2, 2))
    np.testing.assert_allclose(features[1], expected, atol=1e-5)


def test_hog_features_ignore_brightness_and_see_orientation() -> None:
    pytest.importorskip("skimage")
    pictures = _noise(2, 64, 0, 128)
    features = hog_features(pictures)
    np.testing.assert_allclose(hog_features(pictures + np.uint8(100)), features, atol=1e-5)
    np.testing.assert_allclose(hog_features(pictures * np.uint8(2)), features, atol=1e-3)
    assert np.abs(hog_features(np.rot90(pictures, axes=(1, 2))) - features).max() > 0.1


def test_hog_features_resize_to_a_fixed_length() -> None:
    pytest.importorskip("skimage")
    small = _noise(2, 32)
    enlarged = small.repeat(4, axis=1).repeat(4, axis=2)
    assert hog_features(small, size=32).shape == (2, 324)
    np.testing.assert_allclose(hog_features(enlarged, 32), hog_features(small, 32), atol=1e-5)
    assert (hog_features(np.full((1, 20, 30, 3), 255, dtype=np.uint8)) == 0).all()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8), dtype=np.uint8),
        np.zeros((2, 8, 8, 1), dtype=np.uint8),
        np.zeros((2, 3, 8, 8), dtype=np.uint8),
        np.zeros((2, 8, 8, 3), dtype=np.float32),
        np.zeros((2, 0, 8, 3), dtype=np.uint8),
    ],
)
def test_pictures_of_another_kind_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="images"):
        pixel_features(images)


def test_bad_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="side is 0"):
        pixel_features(_noise(1, 8), side=0)
    for size in (8, 60):
        with pytest.raises(ValueError, match=f"size is {size}"):
            hog_features(_noise(1, 8), size=size)


def _clusters(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three well separated clusters in 5 dimensions of very different scale."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = 20 * np.eye(3, 5)
    scale = np.array([1e-3, 1, 1e3, 1, 1])
    return (centres[labels] + generator.normal(size=(count, 5))) * scale, labels


def test_logistic_accuracy_is_perfect_on_separable_classes() -> None:
    pytest.importorskip("sklearn")
    train_x, train_y = _clusters(60, 0)
    test_x, test_y = _clusters(30, 1)
    names = np.array(["cat", "dog", "bird"])
    assert logistic_accuracy(train_x, train_y, test_x, test_y, seed=0) == 1.0
    assert logistic_accuracy(train_x, names[train_y], test_x, names[test_y], seed=0) == 1.0
    # A known share of wrong test labels costs just that share.
    assert logistic_accuracy(
        train_x, train_y, test_x, np.r_[test_y[:15], test_y[15:] + 1], seed=0
    ) == pytest.approx(0.5)


def test_logistic_accuracy_is_chance_on_noise_and_repeatable() -> None:
    pytest.importorskip("sklearn")
    generator = np.random.default_rng(0)
    train_x, test_x = generator.normal(size=(200, 10)), generator.normal(size=(400, 10))
    train_y, test_y = generator.integers(0, 2, 200), generator.integers(0, 2, 400)
    accuracy = logistic_accuracy(train_x, train_y, test_x, test_y, seed=3)
    assert 0.4 < accuracy < 0.6
    assert logistic_accuracy(train_x, train_y, test_x, test_y, seed=3) == accuracy


def test_logistic_accuracy_refuses_bad_data() -> None:
    pytest.importorskip("sklearn")
    x, y = _clusters(12, 0)
    with pytest.raises(ValueError, match="two classes"):
        logistic_accuracy(x, np.zeros(12), x, y, seed=0)
    with pytest.raises(ValueError, match="two members"):
        logistic_accuracy(x, np.r_[y[:-1], 7], x, y, seed=0)
    with pytest.raises(ValueError, match="inconsistent"):
        logistic_accuracy(x[:-1], y, x, y, seed=0)
    with pytest.raises(ValueError, match="NaN"):
        logistic_accuracy(np.where(x == x.max(), np.nan, x), y, x, y, seed=0)


def test_missing_packages_tell_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _clusters(12, 0)
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ModuleNotFoundError, match=r"scikit-image.*\[quickstart\]"):
        hog_features(_noise(1, 8))
    with pytest.raises(ModuleNotFoundError, match=r"scikit-image.*\[quickstart\]"):
        HogFeatures()(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ModuleNotFoundError, match=r"scikit-learn.*\[tasks\]"):
        RidgeClassifier.fit(x, y, 2)
    with pytest.raises(ModuleNotFoundError, match=r"scikit-learn.*\[quickstart\]"):
        logistic_accuracy(x, y, x, y, seed=0)
