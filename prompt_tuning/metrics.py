"""Mean average precision for multi-label scores."""

from __future__ import annotations

import numpy as np


def average_precision(scores: np.ndarray, positives: np.ndarray) -> float:
    """All-points, non-interpolated AP of one class: `Σ_k (R_k − R_{k−1}) · P_k`, in [0, 1].

    Equal scores count as one threshold, so the order of the rows does not matter.

    Args:
        scores: `(images,)`.
        positives: `(images,)`, bool, with at least one true.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], positives[order].cumsum()
    last_of_ties = np.append(ranked[1:] != ranked[:-1], True)
    precision = (hits / np.arange(1, len(hits) + 1))[last_of_ties]
    recall = (hits / hits[-1])[last_of_ties]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def average_precisions(scores: np.ndarray, positives: np.ndarray) -> list[float | None]:
    """AP of each class in [0, 1]; None where a class has no positive.

    Args:
        scores: `(images, classes)`.
        positives: `(images, classes)`, bool.
    """
    return [
        average_precision(scores[:, c], positives[:, c]) if positives[:, c].any() else None
        for c in range(scores.shape[1])
    ]


def mean_average_precision(scores: np.ndarray, positives: np.ndarray) -> float:
    """Mean of the classes' AP in [0, 1], over those that have a positive; NaN when none has."""
    found = [ap for ap in average_precisions(scores, positives) if ap is not None]
    return float(np.mean(found)) if found else float("nan")


def chance_map(positives: np.ndarray) -> float:
    """The mAP in [0, 1] that random scores approach: the mean share of positives."""
    shares = positives.mean(0)
    return float(shares[shares > 0].mean())
