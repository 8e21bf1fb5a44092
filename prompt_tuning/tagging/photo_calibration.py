"""Calibration that a person's own photos improve: a handful with labels, or any without.

Captions name what they show, photos may show it small or beside much else, so the calibration that
held-out captions gave (calibration.py) is only where this begins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from prompt_tuning.evaluation.metrics import (
    expected_calibration_error,
    tag_quality,
    tags_at_thresholds,
)
from prompt_tuning.tagging.calibration import Calibration, f1_thresholds, maximum_a_posteriori

# Of the normal prior, in logits, of what all categories share. Twenty photos move that, and little
# else.
_SHARED_STD = 1.0
_FOLDS = 5


@dataclass(frozen=True)
class Quality:
    """Of scores and the tags that thresholds give, on labelled photos; figures 0-100."""

    ece: float
    micro_f1: float
    macro_f1: float


def fit_labelled(
    calibration: Calibration,
    raw: np.ndarray,
    labels: np.ndarray,
    ignored: np.ndarray | None = None,
) -> Calibration:
    """Fit sigmoids on top of a calibration, maximum a posteriori, and thresholds after them.

    A threshold is the mean of the category's own and the one for all categories: few photos say
    little of the first, and the second is not made for any one.

    Args:
        raw: `(photos, classes)`, as was calibrated.
        labels: `(photos, classes)`, bool.
        ignored: `(photos, classes)`, bool.
    """
    logits = torch.from_numpy(calibration.slopes * raw + calibration.offsets)
    wanted = torch.from_numpy(labels).double()
    counted = torch.ones_like(wanted) if ignored is None else torch.from_numpy(~ignored).double()
    slopes, offsets = maximum_a_posteriori(logits, wanted, counted, (0.0, 0.0), _SHARED_STD)
    before_slope, before_offset, _ = calibration.shared
    fitted = replace(
        calibration,
        slopes=slopes[:-1] * calibration.slopes,
        offsets=slopes[:-1] * calibration.offsets + offsets[:-1],
    )
    scores = fitted.scores(raw)
    threshold = float(f1_thresholds(scores.reshape(-1, 1))[0])
    return replace(
        fitted,
        thresholds=(f1_thresholds(scores) + threshold) / 2,
        shared=(
            float(slopes[-1] * before_slope),
            float(slopes[-1] * before_offset + offsets[-1]),
            threshold,
        ),
        labelled_photos=len(raw),
        source=f"{calibration.source} and {len(raw)} labelled photos",
    )


def fit_unlabelled(calibration: Calibration, raw: np.ndarray) -> Calibration:
    """Thresholds for the best F1 to expect on these photos, `raw` `(photos, classes)`.

    Scores stay: how often photos show a category cannot be known without a label, and moving their
    level to the captions' harms where photos show fewer things than captions name. No threshold
    falls below half of what it was: of a label that no photo shows, the best F1 to expect is that
    of tagging them all.
    """
    slope, offset, threshold = calibration.shared
    shared_scores = np.asarray(expit(slope * raw + offset)).reshape(-1, 1)
    return replace(
        calibration,
        thresholds=np.maximum(f1_thresholds(calibration.scores(raw)), calibration.thresholds / 2),
        shared=(slope, offset, max(float(f1_thresholds(shared_scores)[0]), threshold / 2)),
        source=f"{calibration.source}; thresholds from {len(raw)} photos without labels",
    )


def cross_validated(
    calibration: Calibration,
    raw: np.ndarray,
    labels: np.ndarray,
    ignored: np.ndarray | None,
    seed: int = 0,
) -> tuple[Quality, Quality]:
    """A calibration's quality, and what `fit_labelled` makes of it on photos that it did not see.

    Args:
        raw: `(photos, classes)`, at least as many photos as folds.
        labels: `(photos, classes)`, bool.
        ignored: `(photos, classes)`, bool.
    """
    order = np.random.default_rng(seed).permutation(len(raw))
    scores, tags = np.empty(raw.shape), np.empty(raw.shape, dtype=bool)
    for fold in np.array_split(order, _FOLDS):
        others = np.setdiff1d(order, fold)
        theirs = None if ignored is None else ignored[others]
        fitted = fit_labelled(calibration, raw[others], labels[others], theirs)
        scores[fold] = fitted.scores(raw[fold])
        tags[fold] = tags_at_thresholds(scores[fold], fitted.thresholds)
    before = calibration.scores(raw)
    tags_before = tags_at_thresholds(before, calibration.thresholds)
    return (
        _quality(before, tags_before, labels, ignored),
        _quality(scores, tags, labels, ignored),
    )


def _quality(
    scores: np.ndarray, tags: np.ndarray, labels: np.ndarray, ignored: np.ndarray | None
) -> Quality:
    quality: Any = tag_quality(tags, labels, ignored)
    return Quality(
        ece=100 * expected_calibration_error(scores, labels, ignored),
        micro_f1=100 * quality.micro.f1,
        macro_f1=100 * quality.macro.f1,
    )
