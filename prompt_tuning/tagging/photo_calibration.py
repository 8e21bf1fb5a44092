"""Improving a calibration with a person's own photos: a handful with labels, or any without.

It starts from the calibration on held-out captions (calibration.py). Captions name what they show;
photos may show it small or beside much else. `raw`, `labels` and `ignored` are `(photos, classes)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import expit

from prompt_tuning.evaluation.metrics import expected_calibration_error, tag_quality
from prompt_tuning.tagging.calibration import Calibration, f1_thresholds, maximum_a_posteriori

# Of the normal prior, in logits, of the shared slope and offset. Twenty photos move little else.
_SHARED_STD = 1.0
FOLDS = 5


@dataclass(frozen=True)
class Quality:
    """Quality of scores, and of the tags at the thresholds, on labelled photos; figures 0-100."""

    ece: float
    micro_f1: float
    macro_f1: float


class Evidence(NamedTuple):
    """What photos say about labels: values from 0 to 1 and their weights, `(photos, classes)`."""

    values: np.ndarray
    weights: np.ndarray


def evidence(
    calibration: Calibration, raw: np.ndarray, labels: np.ndarray, ignored: np.ndarray | None
) -> Evidence:
    """Known labels, and in place of unknown ones the calibration's own score.

    People answer no random sample: who only adds what is missing says "yes" each time. Without the
    unknown rest, such answers teach that everything shows everything (docs/adapt.md). A label of
    which nothing is known has no weight.
    """
    if ignored is None:
        return Evidence(labels.astype(float), np.ones(labels.shape))
    weights = np.broadcast_to(~ignored.all(0), labels.shape).astype(float)
    return Evidence(np.where(ignored, calibration.scores(raw), labels), weights)


def fit_labelled(
    calibration: Calibration,
    raw: np.ndarray,
    labels: np.ndarray,
    ignored: np.ndarray | None = None,
) -> Calibration:
    """Fit sigmoids on top of a calibration, maximum a posteriori, and thresholds after them.

    Ignored entries are unknown (see `evidence`).

    A threshold is the mean of the category's own and the shared one: few photos say little about
    the first, and the second fits no category well.
    """
    logits = torch.from_numpy(calibration.slopes * raw + calibration.offsets)
    targets, weights = map(torch.from_numpy, evidence(calibration, raw, labels, ignored))
    slopes, offsets = maximum_a_posteriori(logits, targets, weights, (0.0, 0.0), _SHARED_STD)
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
    """Thresholds for the best F1 to expect on these photos.

    Scores stay: without labels nobody knows how often photos show a category, and moving the scores
    to the captions' level harms where photos show fewer things than captions name. No threshold
    falls below half of its old value: for a label that no photo shows, the best F1 to expect comes
    from tagging all photos.
    """
    slope, offset, threshold = calibration.shared
    shared_scores = np.asarray(expit(slope * raw + offset)).reshape(-1, 1)
    return replace(
        calibration,
        thresholds=np.maximum(f1_thresholds(calibration.scores(raw)), calibration.thresholds / 2),
        shared=(slope, offset, max(float(f1_thresholds(shared_scores)[0]), threshold / 2)),
        source=f"{calibration.source}; thresholds from {len(raw)} photos without labels",
    )


@dataclass(frozen=True)
class Unseen:
    """Calibrated scores, and tags at the thresholds, of photos that the fit did not see.

    Both are `(photos, classes)`.
    """

    scores: np.ndarray
    tags: np.ndarray

    def quality(self, labels: np.ndarray, ignored: np.ndarray | None) -> Quality:
        """How good they are."""
        tags = tag_quality(self.tags, labels, ignored)
        return Quality(
            ece=100 * expected_calibration_error(self.scores, labels, ignored),
            micro_f1=100 * tags.micro.f1,
            macro_f1=100 * tags.macro.f1,
        )


def cross_validated(
    calibration: Calibration,
    raw: np.ndarray,
    labels: np.ndarray,
    ignored: np.ndarray | None,
    seed: int = 0,
) -> Unseen:
    """Scores and tags of each photo after `fit_labelled` on the other folds.

    Needs at least as many photos as folds.
    """
    scores, tags = np.empty(raw.shape), np.empty(raw.shape, dtype=bool)
    for fold, others in folds(len(raw), seed):
        ignored_others = None if ignored is None else ignored[others]
        fitted = fit_labelled(calibration, raw[others], labels[others], ignored_others)
        scores[fold] = fitted.scores(raw[fold])
        tags[fold] = scores[fold] >= fitted.thresholds
    return Unseen(scores, tags)


def unfitted(calibration: Calibration, raw: np.ndarray) -> Unseen:
    """Scores and tags of a calibration as it is."""
    scores = calibration.scores(raw)
    return Unseen(scores, scores >= calibration.thresholds)


def folds(photos: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rows of each of five folds, and the rows of all others."""
    order = np.random.default_rng(seed).permutation(photos)
    return [(fold, np.setdiff1d(order, fold)) for fold in np.array_split(order, FOLDS)]
