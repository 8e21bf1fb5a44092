"""What to ask a person who reviews tags: where an answer teaches most comes first.

An answer teaches much where the model is unsure, and about a label with few answers. For an image
with the calibrated score `s` of a label with the threshold `t` and `n` answers so far:

    p         = sigmoid(logit(s) - logit(t))     1/2 at the threshold
    closeness = 4 p (1 - p)                      1 at the threshold, 0 far from it
    value     = closeness / (1 + n)

`closeness` is the variance of a yes or no answer, scaled to 1. `1 / (1 + n)` follows the variance
of an estimate from `n` answers. An image is asked about labels without an answer that are its tags
or have a closeness of at least `LEAST_CLOSENESS`: the `MOST_QUESTIONS` most valuable ones. The
image's own value is their sum.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit, logit

MOST_QUESTIONS = 6
LEAST_CLOSENESS = 0.1
_END = 1e-6  # keeps logits finite


def closeness(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How near scores `(images, classes)` are to thresholds `(classes,)`; 0 where not scored (NaN).

    >>> closeness(np.array([[0.3, 0.999, np.nan]]), np.full(3, 0.3)).round(2).tolist()
    [[1.0, 0.0, 0.0]]
    """
    distances = logit(scores.clip(_END, 1 - _END)) - logit(thresholds.clip(_END, 1 - _END))
    share = expit(distances)
    return np.asarray(np.nan_to_num(4 * share * (1 - share)))


def question_values(
    close: np.ndarray, is_tag: np.ndarray, answered: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """What an answer is worth, `(images, classes)`; 0 for what is not asked.

    Args:
        close: of `closeness`, `(images, classes)`.
        is_tag: `(images, classes)`, bool: scores that reach their thresholds.
        answered: `(images, classes)`, bool.
        counts: `(classes,)`, how many answers of yes or no each label has.
    """
    asked = ((close >= LEAST_CLOSENESS) | is_tag) & ~answered
    # Not 0: the surest tag of a label with many answers is still asked about.
    return np.where(asked, np.maximum(close, _END) / (1 + counts), 0)


def questions(values: np.ndarray) -> list[int]:
    """The labels to ask an image with these values `(classes,)` about, most valuable first."""
    order = np.argsort(-values, kind="stable")[:MOST_QUESTIONS]
    return [int(c) for c in order if values[c] > 0]


def image_values(values: np.ndarray) -> np.ndarray:
    """The value `(images,)` of images whose questions have these values `(images, classes)`."""
    most = min(MOST_QUESTIONS, values.shape[1])
    return np.asarray(np.partition(values, -most, axis=1)[:, -most:].sum(1))
