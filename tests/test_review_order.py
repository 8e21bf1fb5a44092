"""Which image and which label a person is asked about."""

from __future__ import annotations

import math

import numpy as np

from prompt_tuning.tagging.review_order import (
    LEAST_CLOSENESS,
    MOST_QUESTIONS,
    closeness,
    image_values,
    question_values,
    questions,
)


def values_of(
    scores: np.ndarray, thresholds: np.ndarray, answered: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    is_tag = np.nan_to_num(scores, nan=-1) >= thresholds
    return question_values(closeness(scores, thresholds), is_tag, answered, counts)


def test_values_follow_the_formula() -> None:
    draw = np.random.default_rng(0)
    scores, thresholds = draw.uniform(0, 1, (20, 9)), draw.uniform(0.1, 0.9, 9)
    answered, counts = draw.random((20, 9)) < 0.2, draw.integers(0, 9, 9)
    values = values_of(scores, thresholds, answered, counts)
    for i in range(20):
        for c in range(9):
            s, t = scores[i, c], thresholds[c]
            p = 1 / (1 + math.exp(math.log(t / (1 - t)) - math.log(s / (1 - s))))
            close = 4 * p * (1 - p)
            asked = not answered[i, c] and (close >= LEAST_CLOSENESS or s >= t)
            np.testing.assert_allclose(values[i, c], close / (1 + counts[c]) if asked else 0)
        best = sorted(range(9), key=lambda c: -values[i, c])
        expected = [c for c in best if values[i, c] > 0][:MOST_QUESTIONS]
        assert questions(values[i]) == expected
        np.testing.assert_allclose(image_values(values)[i], values[i, expected].sum())


def test_near_the_threshold_and_with_few_answers_comes_first() -> None:
    thresholds = np.array([0.4, 0.4])
    near, far, sure = [0.4, 0.01], [0.7, 0.01], [0.999999999, 0.0]
    nothing = np.zeros((3, 2), dtype=bool)
    values = values_of(np.array([far, near, sure]), thresholds, nothing, np.zeros(2))
    assert np.argsort(-image_values(values)).tolist() == [1, 0, 2]
    assert questions(values[2]) == [0]  # a sure tag is asked about all the same
    both = np.array([[0.4, 0.4]])
    assert questions(values_of(both, thresholds, nothing[:1], np.array([3, 1]))[0]) == [1, 0]


def test_scores_at_the_ends_and_missing_ones_are_finite() -> None:
    close = closeness(np.array([[0.0, 1.0, np.nan, 0.5]]), np.array([1.0, 0.0, 0.5, 0.5]))
    assert np.isfinite(close).all()
    assert close[0, 3] == 1
    assert close[0, 2] == 0
    values = values_of(
        np.full((2, 4), np.nan), np.full(4, 0.5), np.zeros((2, 4), dtype=bool), np.zeros(4)
    )
    assert not values.any()
