"""Comparison of methods: scores, and figures of the metrics file (docs/evaluation.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from prompt_tuning.backbones.base import Geometry
from prompt_tuning.categories import CategoryList
from prompt_tuning.evaluation.baselines import MethodFeatures
from prompt_tuning.evaluation.bootstrap import (
    LEAST_IMAGES,
    Difference,
    Interval,
    Resampled,
)
from prompt_tuning.evaluation.method_scores import SCORE_KINDS, method_scores
from prompt_tuning.evaluation.metrics import (
    average_precisions,
    chance_map,
    contrasted,
    coverage_error,
    mean_average_precision,
    tag_quality,
    tags_at_top_k,
)
from prompt_tuning.features import FeatureSource

RESAMPLES = 1000
_TOP_K = 3

# By method: for each set of class features, scores `(items, classes)` by kind.
MethodScores = dict[str, list[dict[str, np.ndarray]]]


def score_methods(
    items: FeatureSource, methods: MethodFeatures, geometry: Geometry, fusion: str
) -> MethodScores:
    """The scores of every method on the same items."""
    features = {
        **{method: [classes] for method, classes in methods.untuned.items()},
        "tuned": methods.tuned.values(),
    }
    return {
        method: [method_scores(items, classes, geometry, fusion) for classes in sets]
        for method, sets in features.items()
    }


def compare_methods(
    scores: MethodScores,
    labels: np.ndarray,
    categories: CategoryList,
    ignored: np.ndarray | None = None,
) -> dict[str, Any]:
    """The figures of a metrics file, 0-100. Those of the tuned method are means over its seeds.

    `map` and `map_by_seed` have global, local and fused scores; all other figures are of the fused
    scores. `map_11_points`: VOC 2007's 11-point AP, mean over the classes. `ci`: 95 % intervals of
    the mAP, and of the lead of `tuned` over each baseline on the same items; left out where there
    is nothing to resample (bootstrap.py). `ap`: null for classes without `positives`. `f1_at_top_k`
    and `coverage_error` (a number of tags) are given for `tuned` only.

    Args:
        scores: from `score_methods`.
        labels: `(items, classes)`, bool.
        categories: the classes.
        ignored: `(items, classes)`, bool, entries that are neither positive nor negative.
    """
    maps = {
        method: {
            kind: [100 * mean_average_precision(s[kind], labels, ignored) for s in sets]
            for kind in SCORE_KINDS
        }
        for method, sets in scores.items()
    }
    fused = {method: [s["fused"] for s in sets] for method, sets in scores.items()}
    positives = labels if ignored is None else labels & ~ignored
    return {
        "chance_map": 100 * chance_map(labels, ignored),
        "map": {
            method: {kind: float(np.mean(seeds)) for kind, seeds in by_kind.items()}
            for method, by_kind in maps.items()
        },
        "map_by_seed": {"tuned": maps["tuned"]},
        "map_11_points": {
            method: _mean([mean_average_precision(s, labels, ignored, "11") for s in sets])
            for method, sets in fused.items()
        },
        "ci": _intervals(fused, labels, ignored),
        "ap": {
            method: dict(zip(categories.names, _class_aps(sets, labels, ignored), strict=True))
            for method, sets in fused.items()
        },
        "positives": dict(zip(categories.names, positives.sum(0).tolist(), strict=True)),
        "f1_at_top_k": _top_k_quality(fused["tuned"], labels, ignored),
        "coverage_error": {
            "tuned": float(np.mean([coverage_error(s, labels, ignored) for s in fused["tuned"]]))
        },
    }


def figures_without_meaning(
    labels: np.ndarray, ignored: np.ndarray | None, names: Sequence[str], items: str
) -> list[str]:
    """Sentences about the figures that mean nothing with these labels.

    `labels`, `ignored`: `(items, classes)`, bool. `names`: of the classes. `items`: how the
    sentences call the items, such as "images".
    """
    shown = (labels if ignored is None else labels & ~ignored).any(0)
    always = shown & ~contrasted(labels, ignored)
    listed = ", ".join(np.array(names)[always])
    warnings = []
    if always.any() and always.sum() == shown.sum():
        warnings.append(
            f"All {items} ({len(labels):,}) show every measured class ({listed}): any "
            "scores reach 100 mAP, so these mAPs mean nothing."
        )
    elif always.any():
        warnings.append(
            f"All {items} show {listed}: any scores reach an AP of 100 there, and the mAP "
            "includes it."
        )
    if len(labels) < LEAST_IMAGES:
        warnings.append(f"Intervals need at least {LEAST_IMAGES} {items} (got {len(labels)}).")
    return warnings


def precision_recall(
    scores: np.ndarray, positives: np.ndarray, points: int
) -> list[tuple[float, float]]:
    """(recall, precision) of one class, each in [0, 1], at no more than `points` of its positives.

    Args:
        scores: `(images,)`.
        positives: `(images,)`, bool, with at least one true.
        points: at least 2; the first and the last positive are always among them.
    """
    order = np.argsort(-scores, kind="stable")
    ranks = np.flatnonzero(positives[order]) + 1
    hits = np.unique(np.linspace(1, len(ranks), min(points, len(ranks))).round().astype(int))
    return [(float(n / len(ranks)), float(n / ranks[n - 1])) for n in hits]


def _intervals(
    fused: dict[str, list[np.ndarray]], labels: np.ndarray, ignored: np.ndarray | None
) -> dict[str, list[float]]:
    """Interval ends, 0-100, of each method's mAP and of the lead of `tuned` over each baseline."""
    resampled = Resampled(fused, labels, RESAMPLES, 0, ignored)
    ends: dict[str, Interval | Difference] = {m: resampled.interval(m) for m in fused}
    for method in fused:
        if method != "tuned":
            ends[f"tuned - {method}"] = resampled.difference("tuned", method)
    return {
        name: [100 * interval.low, 100 * interval.high]
        for name, interval in ends.items()
        if not math.isnan(interval.low)
    }


def _class_aps(
    sets: list[np.ndarray], labels: np.ndarray, ignored: np.ndarray | None
) -> list[float | None]:
    """AP of each class, 0-100, mean over the sets of scores."""
    aps = [average_precisions(scores, labels, ignored) for scores in sets]
    means = np.array(aps, dtype=float).mean(0)  # NaN for None
    return [None if np.isnan(ap) else 100 * float(ap) for ap in means]


def _top_k_quality(
    sets: list[np.ndarray], labels: np.ndarray, ignored: np.ndarray | None
) -> dict[str, Any]:
    """Precision, recall and F1 of each image's best tags, 0-100, mean over the sets of scores.

    Ignored entries are never among the best.
    """
    k = min(_TOP_K, labels.shape[1])
    if ignored is not None:
        sets = [np.where(ignored, -np.inf, scores) for scores in sets]
    qualities = [tag_quality(tags_at_top_k(scores, k), labels, ignored) for scores in sets]
    return {
        "k": k,
        "tuned": {
            average: {
                rate: _mean([getattr(getattr(quality, average), rate) for quality in qualities])
                for rate in ("precision", "recall", "f1")
            }
            for average in ("micro", "macro")
        },
    }


def _mean(shares: Sequence[float]) -> float:
    """The mean, 0-100."""
    return 100 * float(np.mean(shares))
