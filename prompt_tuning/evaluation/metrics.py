"""How well multi-label scores rank images (AP, mAP) and how well tags agree with labels (F1).

Unless a function says otherwise, arrays are `(images, classes)`; `tags`, `positives` and `ignored`
are bool. `ignored` marks entries, such as VOC's difficult objects, that count neither as positive
nor as negative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Points = Literal["all", "11"]


def average_precision(scores: np.ndarray, positives: np.ndarray, points: Points = "all") -> float:
    """AP of one class, in [0, 1].

    `all`: non-interpolated, `Σ_k (R_k − R_{k−1}) · P_k`. `11`: the mean over the recalls 0, 0.1 … 1
    of the best precision at this recall or above (VOC 2007; Everingham et al., "The PASCAL Visual
    Object Classes (VOC) Challenge", IJCV 2010).

    Equal scores count as one threshold, so the order of the rows does not matter.

    Args:
        scores: `(images,)`.
        positives: `(images,)`, bool, with at least one true.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], positives[order].cumsum()
    last_of_ties = np.append(ranked[1:] != ranked[:-1], True)
    precision = (hits / np.arange(1, len(hits) + 1))[last_of_ties]
    if points == "11":
        best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
        # In whole numbers: 3 of 10 may not equal a recall of 0.3 in floats.
        reached = np.searchsorted(10 * hits[last_of_ties], hits[-1] * np.arange(11))
        return float(best_from_here[reached].mean())
    recall = (hits / hits[-1])[last_of_ties]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def average_precisions(
    scores: np.ndarray,
    positives: np.ndarray,
    ignored: np.ndarray | None = None,
    points: Points = "all",
) -> list[float | None]:
    """AP of each class in [0, 1]; None for a class without positives."""
    counted = _counted(positives, ignored)
    shown = positives & counted
    return [
        average_precision(scores[counted[:, c], c], shown[counted[:, c], c], points)
        if shown[:, c].any()
        else None
        for c in range(scores.shape[1])
    ]


def mean_average_precision(
    scores: np.ndarray,
    positives: np.ndarray,
    ignored: np.ndarray | None = None,
    points: Points = "all",
) -> float:
    """Mean AP in [0, 1] over the classes that have a positive; NaN if no class has one."""
    aps = average_precisions(scores, positives, ignored, points)
    found = [ap for ap in aps if ap is not None]
    return float(np.mean(found)) if found else math.nan


def contrasted(positives: np.ndarray, ignored: np.ndarray | None = None) -> np.ndarray:
    """The classes `(classes,)`, bool, that some images show and others do not.

    The AP of a class that every image shows is 1 for any scores.
    """
    counted = _counted(positives, ignored)
    return np.asarray((positives & counted).any(0) & (~positives & counted).any(0))


def chance_map(positives: np.ndarray, ignored: np.ndarray | None = None) -> float:
    """The mAP in [0, 1] that random scores approach: the mean share of positives."""
    counted = _counted(positives, ignored)
    shown = (positives & counted).sum(0)
    return float((shown[shown > 0] / counted.sum(0)[shown > 0]).mean())


@dataclass(frozen=True)
class Rates:
    """Precision, recall and F1, their harmonic mean, each in [0, 1]; without tags all are 0."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class TagQuality:
    """How well tags agree with labels.

    `micro`: over all pairs of image and class, so a tag of a class without positives counts as
    wrong. `macro`: means over the classes that have a positive; its F1 is the mean of the classes'
    F1, as in scikit-learn, not the harmonic mean of the mean precision and recall. Both are NaN
    if no class has a positive. `by_class`: one entry per class, None for a class without positives.
    """

    micro: Rates
    macro: Rates
    by_class: tuple[Rates | None, ...]


def tags_at_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """The k best tags of each image, 1 ≤ k ≤ classes; the first of equal scores is better."""
    tags = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(tags, np.argsort(-scores, axis=1, kind="stable")[:, :k], True, axis=1)
    return tags


def tag_quality(
    tags: np.ndarray, positives: np.ndarray, ignored: np.ndarray | None = None
) -> TagQuality:
    """Precision, recall and F1 of tags. A tag on an ignored entry is neither right nor wrong."""
    counted = _counted(positives, ignored)
    right = (tags & positives & counted).sum(0)
    given = (tags & counted).sum(0)
    shown = (positives & counted).sum(0)
    by_class = tuple(
        _rates(*counts) if counts[2] else None for counts in zip(right, given, shown, strict=True)
    )
    measured = [rates for rates in by_class if rates is not None]
    if not measured:
        undefined = Rates(math.nan, math.nan, math.nan)
        return TagQuality(micro=undefined, macro=undefined, by_class=by_class)
    macro = Rates(
        precision=float(np.mean([rates.precision for rates in measured])),
        recall=float(np.mean([rates.recall for rates in measured])),
        f1=float(np.mean([rates.f1 for rates in measured])),
    )
    return TagQuality(_rates(right.sum(), given.sum(), shown.sum()), macro, by_class)


def best_thresholds(
    scores: np.ndarray, positives: np.ndarray, ignored: np.ndarray | None = None
) -> np.ndarray:
    """The threshold with the highest F1 of each class on these labels, `(classes,)`.

    An upper bound for thresholds that are chosen without the labels. Infinite for a class without
    positives.
    """
    counted = _counted(positives, ignored)
    best = np.full(scores.shape[1], np.inf)
    for c in np.flatnonzero((positives & counted).any(0)):
        class_scores, shown = scores[counted[:, c], c], positives[counted[:, c], c]
        order = np.argsort(-class_scores, kind="stable")
        ranked, hits = class_scores[order], shown[order].cumsum()
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
        last_of_ties = np.append(ranked[1:] != ranked[:-1], True)
        best[c] = ranked[np.where(last_of_ties, f1, -1).argmax()]
    return best


def expected_calibration_error(
    scores: np.ndarray, positives: np.ndarray, ignored: np.ndarray | None = None, bins: int = 15
) -> float:
    """How far scores in [0, 1] are from being probabilities, over all pairs of image and class.

    The mean, over bins of equal width weighted by their pairs, of the distance between mean score
    and share of positives (Naeini et al., 2015; Guo et al., 2017, arXiv 1706.04599, §2).
    """
    counted = _counted(positives, ignored)
    bin_of = np.minimum((scores[counted] * bins).astype(int), bins - 1)
    excess = scores[counted] - positives[counted]
    return float(np.abs(np.bincount(bin_of, excess, bins)).sum() / counted.sum())


def coverage_error(
    scores: np.ndarray, positives: np.ndarray, ignored: np.ndarray | None = None
) -> float:
    """How many of its best tags an image needs, on average, to include all its labels.

    Tags with the same score as the last one needed count too; an image without positives counts
    as 0 (scikit-learn's `coverage_error`; Tsoumakas et al., "Mining Multi-label Data", 2010, whose
    figure is lower by 1).
    """
    counted = _counted(positives, ignored)
    lowest = np.where(positives & counted, scores, np.inf).min(1, keepdims=True)
    return float(((scores >= lowest) & counted).sum(1).mean())


def _rates(right: int, given: int, shown: int) -> Rates:
    """Rates of `given` tags that include `right` ones, for `shown` ≥ 1 labels."""
    return Rates(
        precision=float(right / max(given, 1)),
        recall=float(right / shown),
        f1=float(2 * right / (given + shown)),
    )


def _counted(positives: np.ndarray, ignored: np.ndarray | None) -> np.ndarray:
    """The entries that are not ignored."""
    return np.ones(positives.shape, dtype=bool) if ignored is None else ~ignored
