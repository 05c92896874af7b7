"""The linear classifier in closed form, against scikit-learn's own pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sketchfusion_plugins.heads.embedding import ClassifierHead
from sketchfusion_plugins.heads.ridge import RidgeClassifier

ALPHAS = 10 ** np.arange(0, 5.5, 0.5)


def items(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    descriptors = generator.normal(size=(count, 24)) * 3 + 7
    descriptors[:, 0] = 5
    return descriptors + 0.8 * np.eye(24)[labels + 1], labels


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("count", [12, 60])
def test_scores_are_those_of_scikit_learn(classes: int, count: int) -> None:
    train, labels = items(count, classes)
    test, _ = items(9, classes, seed=1)
    oracle = make_pipeline(StandardScaler(), RidgeClassifierCV(ALPHAS)).fit(train, labels)
    expected = oracle.decision_function(test)
    if classes == 2:
        expected = np.stack([-expected, expected], 1)
    found = RidgeClassifier.fit(train, labels, classes).scores(test)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_classes_without_items_score_lowest() -> None:
    train = np.array([[0.0, 1.0], [0.2, 0.8], [1.0, 0.0], [0.8, 0.3]])
    scores = RidgeClassifier.fit(train, np.array([1, 1, 3, 3]), 4).scores(train[::-1])
    assert scores.shape == (4, 4)
    assert scores.argmax(1).tolist() == [3, 3, 1, 1]
    assert (scores[:, [0, 2]] == -np.inf).all()
    np.testing.assert_allclose(scores[:, 1], -scores[:, 3])


def test_descriptors_are_left_as_they_were() -> None:
    train, labels = items(12, 3)
    before = train.copy()
    RidgeClassifier.fit(train, labels, 3).scores(train)
    np.testing.assert_array_equal(train, before)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least two classes, got labels \[4\]"):
        RidgeClassifier.fit(np.ones((3, 2)), np.full(3, 4), 5)


def test_a_head_becomes_it() -> None:
    train, labels = items(40, 3)
    maps = torch.from_numpy(train).float().unflatten(1, (6, 2, 2))
    head = ClassifierHead(6, 4, grid=2).eval()
    head.fit(head.pool(maps), torch.from_numpy(labels))
    scores = 5 * RidgeClassifier.fit(train, labels, 4).scores(train)
    torch.testing.assert_close(head(maps)[:, :3].double(), torch.from_numpy(scores[:, :3]))
    assert (head(maps)[:, 3] == -5).all(), "a class that was missing"
    assert all(parameter.requires_grad for parameter in head.parameters())
