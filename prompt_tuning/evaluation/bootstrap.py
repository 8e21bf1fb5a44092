"""Bootstrap intervals of mAP over images: how much a figure owes to which images were drawn.

Images are drawn with replacement, as many as there are; a class without positives in a resample is
left out of that resample's mean. A resample is stored as how often each image was drawn, and AP
takes these counts as weights, so each class is sorted once for all resamples.

Intervals are the quantiles of the resamples' figures, moved so that their mean is the figure
itself (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, §10 and §13): a positive
drawn twice ranks beside itself, which lifts the mAP of every resample. An interval then covers the
mAP to expect from *as many* images of the same source. The mAP of endless images is lower (by 2
points at 500 images and 30 positives per class); in a difference this cancels.

Seeds of tuning are not resampled: the mAP of several score matrices is averaged, then resampled.

In all functions, `scores` is `(images, classes)` or several such matrices, and `labels` and
`ignored` (entries that are neither positive nor negative) are `(images, classes)`, bool.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prompt_tuning.evaluation.metrics import contrasted, mean_average_precision

# Resamples of fewer images say nothing about other images.
LEAST_IMAGES = 10
# Of resamples: two bytes each, and as much again while they are sorted.
_COUNTS_AT_ONCE = 2**25
# One matrix `(images, classes)`, or those of several seeds, whose mAP is averaged.
Scores = np.ndarray | Sequence[np.ndarray]


@dataclass(frozen=True)
class Interval:
    """Ends of an interval of mAP in [0, 1]."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """One mAP minus another, in [-1, 1], and the ends of its interval."""

    mean: float
    low: float
    high: float


def bootstrap_map(
    scores: Scores,
    labels: np.ndarray,
    replicates: int,
    seed: int,
    ignored: np.ndarray | None = None,
    share: float = 0.95,
) -> Interval:
    """The interval that covers the mAP in `share` of all sets of as many images.

    `replicates`: number of resamples. The ends are NaN for fewer than `LEAST_IMAGES` images, or if
    no class is shown by some images and not by others.
    """
    resampled = Resampled({"only": scores}, labels, replicates, seed, ignored)
    return resampled.interval("only", share)


def paired_difference(
    scores_a: Scores,
    scores_b: Scores,
    labels: np.ndarray,
    replicates: int,
    seed: int,
    ignored: np.ndarray | None = None,
    share: float = 0.95,
) -> Difference:
    """mAP of a minus mAP of b, with the same resamples for both; ends as in `bootstrap_map`.

    a and b may have different numbers of matrices.
    """
    resampled = Resampled({"a": scores_a, "b": scores_b}, labels, replicates, seed, ignored)
    return resampled.difference("a", "b", share)


class Resampled:
    """The mAPs of several methods on the same resamples."""

    def __init__(
        self,
        methods: Mapping[str, Scores],
        labels: np.ndarray,
        replicates: int,
        seed: int,
        ignored: np.ndarray | None = None,
    ) -> None:
        self._observed = {name: _observed(s, labels, ignored) for name, s in methods.items()}
        self._replicas: dict[str, np.ndarray] | None = None
        if not _can_resample(labels, ignored):
            return
        draw = np.random.default_rng(seed)
        at_once = max(1, _COUNTS_AT_ONCE // len(labels))
        blocks: dict[str, list[np.ndarray]] = {name: [] for name in methods}
        for first in range(0, replicates, at_once):
            counts = resample_counts(len(labels), min(at_once, replicates - first), draw)
            for name, scores in methods.items():
                blocks[name].append(resampled_maps(scores, labels, counts, ignored))
        self._replicas = {name: np.concatenate(maps) for name, maps in blocks.items()}

    def interval(self, method: str, share: float = 0.95) -> Interval:
        """As `bootstrap_map`."""
        if self._replicas is None:
            return Interval(math.nan, math.nan)
        return Interval(*_ends(self._replicas[method], self._observed[method], share))

    def difference(self, a: str, b: str, share: float = 0.95) -> Difference:
        """As `paired_difference`."""
        mean = self._observed[a] - self._observed[b]
        if self._replicas is None:
            return Difference(mean, math.nan, math.nan)
        replicas = self._replicas[a] - self._replicas[b]
        return Difference(mean, *_ends(replicas, mean, share))


def resample_counts(images: int, replicates: int, seed: int | np.random.Generator) -> np.ndarray:
    """How often each resample draws each image, `(images, replicates)`."""
    draw = np.random.default_rng(seed)
    counts = np.empty((images, replicates), dtype=np.uint16)
    for r in range(replicates):
        counts[:, r] = np.bincount(draw.integers(0, images, images), minlength=images)
    return counts


def resampled_maps(
    scores: Scores, labels: np.ndarray, counts: np.ndarray, ignored: np.ndarray | None = None
) -> np.ndarray:
    """The mAP of each resample, `(replicates,)`, averaged over the matrices of `scores`.

    `counts`: from `resample_counts`. NaN for a resample in which no class has a positive.
    """
    counted = np.ones(labels.shape, dtype=bool) if ignored is None else ~ignored
    classes = np.flatnonzero((labels & counted).any(0))
    matrices = _matrices(scores)
    total = np.zeros(counts.shape[1])
    present = np.zeros(counts.shape[1])
    for c in classes:
        rows = np.flatnonzero(counted[:, c])
        for matrix in matrices:
            aps = weighted_average_precisions(matrix[rows, c], labels[rows, c], counts[rows])
            total += np.nan_to_num(aps)
        present += ~np.isnan(aps)
    with np.errstate(invalid="ignore"):
        return total / (len(matrices) * present)


def weighted_average_precisions(
    scores: np.ndarray, positives: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """AP of one class under each column of weights, `(columns,)`; NaN if no positive has weight.

    The same as `average_precision` with each image repeated as often as its weight says.

    Args:
        scores: `(images,)`.
        positives: `(images,)`, bool, with at least one true.
        weights: `(images, columns)`, whole numbers.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_ties = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    found = np.flatnonzero(positives[order])
    # Recall rises only at the scores of positives; weights between them are summed up.
    ends, first = np.unique(last_of_ties[np.searchsorted(last_of_ties, found)], return_index=True)
    ranked_weights = weights[order[: ends[-1] + 1]]
    gained = np.add.reduceat(ranked_weights[found], first, axis=0, dtype=np.int64)
    between = np.add.reduceat(
        ranked_weights, np.append(0, ends[:-1] + 1), axis=0, dtype=np.int64
    )  # (thresholds, columns), both
    hits = gained.cumsum(0)
    precision = hits / np.maximum(between.cumsum(0), 1)
    with np.errstate(invalid="ignore"):
        return (gained * precision).sum(0) / hits[-1]


def _can_resample(labels: np.ndarray, ignored: np.ndarray | None) -> bool:
    return len(labels) >= LEAST_IMAGES and bool(contrasted(labels, ignored).any())


def _matrices(scores: Scores) -> Sequence[np.ndarray]:
    return [scores] if isinstance(scores, np.ndarray) else scores


def _observed(scores: Scores, labels: np.ndarray, ignored: np.ndarray | None) -> float:
    """mAP of all images, averaged over the matrices of `scores`."""
    return float(np.mean([mean_average_precision(s, labels, ignored) for s in _matrices(scores)]))


def _ends(replicas: np.ndarray, observed: float, share: float) -> tuple[float, float]:
    """Quantiles around the middle `share` of `replicas`, moved by the bias of their mean."""
    low, high = np.nanquantile(replicas, [(1 - share) / 2, (1 + share) / 2])
    bias = np.nanmean(replicas) - observed
    return float(low - bias), float(high - bias)
