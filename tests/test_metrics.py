"""Average precision, against scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from prompt_tuning.metrics import (
    average_precision,
    average_precisions,
    chance_map,
    mean_average_precision,
)


def drawn(seed: int, images: int = 60, classes: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties; the classes 0 and 4 have no positive, class 1 has all."""
    draw = np.random.default_rng(seed)
    scores = draw.integers(0, 8, (images, classes)) / 8
    positives = draw.random((images, classes)) < 0.2
    positives[:, [0, 4]] = False
    positives[:, 1] = True
    return scores, positives


@pytest.mark.parametrize("seed", range(5))
def test_ap_is_scikit_learns_also_with_ties(seed: int) -> None:
    scores, positives = drawn(seed)
    for c, ap in enumerate(average_precisions(scores, positives)):
        if c in (0, 4):
            assert ap is None
        else:
            assert ap == pytest.approx(average_precision_score(positives[:, c], scores[:, c]))


def test_ap_of_an_example_worked_out_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    positives = np.array([True, False, True, False])
    assert average_precision(scores, positives) == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_map_is_the_mean_over_the_classes_that_have_positives() -> None:
    scores, positives = drawn(0)
    present = [c for c in range(9) if c not in (0, 4)]
    expected = average_precision_score(positives[:, present], scores[:, present], average="macro")
    assert mean_average_precision(scores, positives) == pytest.approx(expected)
    assert math.isnan(mean_average_precision(scores, np.zeros_like(positives)))


def test_the_order_of_the_images_does_not_matter() -> None:
    scores, positives = drawn(0)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(scores))
        shuffled = average_precisions(scores[order], positives[order])
        assert shuffled == pytest.approx(average_precisions(scores, positives))


def test_equal_scores_and_many_random_ones_give_chance() -> None:
    _, positives = drawn(0)
    chance = chance_map(positives)
    present = [c for c in range(9) if c not in (0, 4)]
    assert chance == pytest.approx(positives[:, present].mean())
    assert mean_average_precision(np.ones(positives.shape), positives) == pytest.approx(chance)
    draw = np.random.default_rng(1)
    many = np.repeat(positives, 100, axis=0)
    assert mean_average_precision(draw.random(many.shape), many) == pytest.approx(chance, abs=0.01)
