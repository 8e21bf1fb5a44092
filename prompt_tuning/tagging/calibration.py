"""Calibrated scores, one independent of the other, and from which score on to say yes.

Of each category `sigmoid(slope · raw score + offset)` (Platt, "Probabilistic outputs for support
vector machines", 1999), fitted without a photo: held-out captions with their labels stand in for
images. A category has a handful of them only, so its slope and offset are drawn towards those that
all categories share, by normal priors around these (maximum a posteriori).

Thresholds are those of the best F1 to expect: with calibrated scores it is half of that F1 itself
(Lipton, Elkan and Naryanaswamy, 2014, arXiv 1402.1892), which needs no label either.

A category that no held-out caption shows has what the others share, and so have labels that come
later: captions are no sample of anyone's images, so their silence says nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit
from torch import Tensor

from prompt_tuning.backbones.base import Geometry
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.evaluation.compare import method_scores
from prompt_tuning.evaluation.metrics import (
    best_thresholds,
    expected_calibration_error,
    tag_quality,
    tags_at_thresholds,
)
from prompt_tuning.settings import Settings
from prompt_tuning.tuning.caption_set import CaptionSet

_STAND_INS = 4000
_CAPTIONS_EACH = 2
# Of a class's normal priors around what all classes share, in logits.
_OFFSET_STD = 1.0
_SLOPE_STD = 0.25


@dataclass(frozen=True)
class Calibration:
    """What makes raw scores calibrated ones; every array is `(classes,)`.

    `thresholds` are calibrated scores. `shared`: slope, offset and threshold for a label that
    nothing is known of. `labelled_photos`: how many it was fitted on. `source`: what all this was
    found on, for people.
    """

    slopes: np.ndarray
    offsets: np.ndarray
    thresholds: np.ndarray
    shared: tuple[float, float, float]
    labelled_photos: int = 0
    source: str = "held-out sentences"

    def scores(self, raw: np.ndarray) -> np.ndarray:
        """Calibrated scores in [0, 1] of raw ones, both `(items, classes)`."""
        return np.asarray(expit(self.slopes * raw + self.offsets))

    def of(self, rows: list[int]) -> Calibration:
        """That of these categories, in their order."""
        arrays: dict[str, Any] = {name: getattr(self, name)[rows] for name in _ARRAYS}
        return replace(self, **arrays)

    def adding(self, labels: int) -> Calibration:
        """With as many more labels, which have what all categories share."""
        arrays: dict[str, Any] = {
            name: np.append(getattr(self, name), [shared] * labels)
            for name, shared in zip(_ARRAYS, self.shared, strict=True)
        }
        return replace(self, **arrays)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, which keep every bit."""
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
        return {**vars(self), **arrays, "shared": list(self.shared)}

    @classmethod
    def from_json(cls, described: dict[str, Any]) -> Calibration:
        """Read what `to_json` gave, which `CalibrationValues` checks."""
        arrays = {name: np.array(described[name]) for name in _ARRAYS}
        return cls(**described | arrays | {"shared": tuple(described["shared"])})


_ARRAYS = ("slopes", "offsets", "thresholds")


class CalibrationValues(Settings):
    """A `Calibration` as it stands in a file."""

    slopes: tuple[float, ...]
    offsets: tuple[float, ...]
    thresholds: tuple[float, ...]
    shared: tuple[float, float, float]
    labelled_photos: int = 0
    source: str


def fit_sigmoids(
    raw: np.ndarray, labels: np.ndarray, weight: float = 1.0
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Slopes and offsets `(classes,)`, then the shared ones, which classes without labels have.

    Args:
        raw: `(items, classes)`.
        labels: `(items, classes)`, bool.
        weight: how many items each item counts as.
    """
    # Standardised, so that priors mean the same whatever the scale of a backbone's scores is.
    mean, spread = float(raw.mean()), float(raw.std())
    scores = torch.from_numpy((raw - mean) / spread).double()
    # Platt's targets, a little off 0 and 1: separable captions would have infinite slopes.
    shown, hidden = weight * labels.sum(), weight * (~labels).sum()
    targets = torch.from_numpy(np.where(labels, (shown + 1) / (shown + 2), 1 / (hidden + 2)))
    weights = weight * torch.from_numpy(labels.any(0)).double().expand_as(scores)
    slopes, offsets = maximum_a_posteriori(scores, targets, weights, (1.0, -3.0), math.inf)
    slopes /= spread
    offsets -= slopes * mean
    return slopes[:-1], offsets[:-1], float(slopes[-1]), float(offsets[-1])


def maximum_a_posteriori(
    scores: Tensor,
    targets: Tensor,
    weights: Tensor,
    start: tuple[float, float],
    shared_std: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit `sigmoid(slope · score + offset)` of each class: slopes and offsets, `(classes + 1,)`.

    The last of each is shared by all classes. The others have normal priors around it, in log
    slopes and offsets.

    Args:
        scores: `(items, classes)`, double.
        targets: `(items, classes)`, double, in [0, 1].
        weights: `(items, classes)`, double, of each entry's loss.
        start: the shared log slope and offset at the beginning.
        shared_std: of the shared ones' normal priors around 0; infinite for none.
    """
    shared = torch.tensor(start, dtype=torch.double, requires_grad=True)
    own = torch.zeros(2, scores.shape[1], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [shared, own], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def parameters() -> tuple[Tensor, Tensor]:
        """Slopes, which stay positive, and offsets."""
        deviations = F.pad(own, (0, 1))
        return (
            (shared[0] + _SLOPE_STD * deviations[0]).exp(),
            shared[1] + _OFFSET_STD * deviations[1],
        )

    def loss() -> Tensor:
        optimizer.zero_grad()
        slopes, offsets = parameters()
        losses = F.binary_cross_entropy_with_logits(
            slopes[:-1] * scores + offsets[:-1], targets, reduction="none"
        )
        priors = own.square().sum() + (shared / shared_std).square().sum()
        total = (weights * losses).sum() + priors / 2
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        slopes, offsets = parameters()
    return slopes.numpy(), offsets.numpy()


def f1_thresholds(scores: np.ndarray) -> np.ndarray:
    """From which calibrated score on to say yes for the best F1 to expect: `(classes,)`.

    `scores`: `(items, classes)` in [0, 1], calibrated.
    """
    ranked = -np.sort(-scores, axis=0)
    taken = np.arange(1, len(scores) + 1)[:, None]
    expected = 2 * ranked.cumsum(0) / (taken + ranked.sum(0))
    return np.asarray(expected.max(0) / 2)


def calibrate_on_captions(
    classes: ClassFeatures, held_out: CaptionSet, geometry: Geometry, seed: int = 0
) -> Calibration:
    """Calibrate the weighted mean of both branches' raw scores on held-out captions.

    Whatever the fusion: a softmax over classes makes their scores compete, so that none can be
    calibrated by itself.
    """
    stand_ins = mixtures(held_out, _CAPTIONS_EACH, seed)
    raw = method_scores(stand_ins.features, classes, geometry, "mean")["fused"]
    labels = stand_ins.labels.numpy()
    # Captions are in many mixtures, and none of them is evidence more than once.
    weight = len(held_out) / len(raw)
    slopes, offsets, slope, offset = fit_sigmoids(raw, labels, weight)
    scores = np.asarray(expit(slopes * raw + offsets))
    threshold = float(f1_thresholds(scores.reshape(-1, 1))[0])
    thresholds = np.where(labels.any(0), f1_thresholds(scores), threshold)
    return Calibration(slopes, offsets, thresholds, (slope, offset, threshold))


def mixtures(held_out: CaptionSet, captions: int, seed: int) -> CaptionSet:
    """Items of as many captions each, with the labels of all, as an image shows several things."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.randint(len(held_out), (_STAND_INS, captions), generator=draw)
    drawn = held_out.take(places.flatten())
    return CaptionSet.of_all(
        drawn.features.merge(captions), drawn.labels.unflatten(0, (-1, captions)).any(1)
    )


def calibration_quality(
    raw: np.ndarray, labels: np.ndarray, ignored: np.ndarray | None, calibration: Calibration
) -> dict[str, Any]:
    """How far calibrated scores can be trusted on labelled images; all figures 0-100.

    `ece`: expected calibration error. `at_thresholds`: of the tags that thresholds give, `best_f1`:
    of those that the best threshold of each class on these very images would give.

    Args:
        raw: `(images, classes)`, as was calibrated.
        labels: `(images, classes)`, bool.
        ignored: `(images, classes)`, bool.
    """
    scores = calibration.scores(raw)
    given, best = (
        tag_quality(tags_at_thresholds(scores, thresholds), labels, ignored)
        for thresholds in (calibration.thresholds, best_thresholds(scores, labels, ignored))
    )
    return {
        "ece": 100 * expected_calibration_error(scores, labels, ignored),
        "at_thresholds": {
            average: {rate: 100 * share for rate, share in asdict(getattr(given, average)).items()}
            for average in ("micro", "macro")
        },
        "best_f1": {average: 100 * getattr(best, average).f1 for average in ("micro", "macro")},
    }
