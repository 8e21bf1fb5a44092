"""Calibrated scores, independent of each other, and the thresholds from which labels become tags.

The calibrated score of a category is `sigmoid(slope · raw score + offset)` (Platt, "Probabilistic
outputs for support vector machines", 1999). It is fitted without photos, on held-out captions in
place of images. A category has only a handful of captions, so normal priors draw its slope and
offset towards those that all categories share (maximum a posteriori).

Thresholds aim at the best F1 to expect, which needs no labels: with calibrated scores, the best
threshold is half of that F1 (Lipton, Elkan and Naryanaswamy, 2014, arXiv 1402.1892).

A category that no held-out caption shows gets the shared values, and so do labels that come later:
captions are not a sample of anyone's images, so a missing caption says nothing.
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
from prompt_tuning.evaluation.method_scores import method_scores
from prompt_tuning.evaluation.metrics import (
    best_thresholds,
    expected_calibration_error,
    tag_quality,
)
from prompt_tuning.features import Features
from prompt_tuning.settings import Settings
from prompt_tuning.tuning.caption_set import CaptionSet

_MIXTURES = 4000
_CAPTIONS_PER_MIXTURE = 4  # chosen on scenes (docs/figures.md)
# Of a class's normal priors around the shared values, in logits.
_OFFSET_STD = 1.0
_SLOPE_STD = 0.25


@dataclass(frozen=True)
class Calibration:
    """Turns raw scores into calibrated ones; every array is `(classes,)`.

    `thresholds` are calibrated scores. `shared`: slope, offset and threshold for a label without
    data. `labelled_photos`: how many it was fitted on. `source`: what it was fitted on, for people.
    """

    slopes: np.ndarray
    offsets: np.ndarray
    thresholds: np.ndarray
    shared: tuple[float, float, float]
    labelled_photos: int = 0
    source: str = "held-out sentences"

    def scores(self, raw: np.ndarray) -> np.ndarray:
        """Calibrated scores in [0, 1] from raw scores, both `(items, classes)`."""
        return np.asarray(expit(self.slopes * raw + self.offsets))

    def of(self, rows: list[int]) -> Calibration:
        """The calibration of these categories, in their order."""
        arrays: dict[str, Any] = {name: getattr(self, name)[rows] for name in _ARRAYS}
        return replace(self, **arrays)

    def adding(self, labels: int) -> Calibration:
        """With this many more labels, which get the shared values."""
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
        """Read the result of `to_json`, which `CalibrationValues` checks."""
        arrays = {name: np.array(described[name]) for name in _ARRAYS}
        return cls(**described | arrays | {"shared": tuple(described["shared"])})


_ARRAYS = ("slopes", "offsets", "thresholds")


class CalibrationValues(Settings):
    """A `Calibration` in a file."""

    slopes: tuple[float, ...]
    offsets: tuple[float, ...]
    thresholds: tuple[float, ...]
    shared: tuple[float, float, float]
    labelled_photos: int = 0
    source: str


def fit_sigmoids(
    raw: np.ndarray, labels: np.ndarray, weight: float = 1.0
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Slopes and offsets `(classes,)`, then the shared ones, which classes without labels get.

    Args:
        raw: `(items, classes)`.
        labels: `(items, classes)`, bool.
        weight: how many items each item counts as.
    """
    # Standardised, so that priors mean the same for backbones with other scales.
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
        shared_std: of the normal priors of the shared values around 0; infinite: no priors.
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
    """Thresholds `(classes,)` for the best F1 to expect of calibrated scores `(items, classes)`."""
    ranked = -np.sort(-scores, axis=0)
    taken = np.arange(1, len(scores) + 1)[:, None]
    expected = 2 * ranked.cumsum(0) / (taken + ranked.sum(0))
    return np.asarray(expected.max(0) / 2)


def calibrate_on_captions(
    classes: ClassFeatures, held_out: CaptionSet, geometry: Geometry, seed: int = 0
) -> Calibration:
    """Calibrate the weighted mean of both branches' raw scores on held-out captions.

    This holds for every `fusion` setting: a softmax over classes makes their scores compete, so
    that none can be calibrated by itself.
    """
    items, shown = mixtures(held_out, _CAPTIONS_PER_MIXTURE, seed)
    raw = method_scores(items, classes, geometry, "mean")["fused"]
    labels = shown.numpy()
    # A caption is in many mixtures, but counts as evidence only once.
    weight = len(held_out) / len(raw)
    slopes, offsets, slope, offset = fit_sigmoids(raw, labels, weight)
    scores = np.asarray(expit(slopes * raw + offsets))
    threshold = float(f1_thresholds(scores.reshape(-1, 1))[0])
    thresholds = np.where(labels.any(0), f1_thresholds(scores), threshold)
    return Calibration(slopes, offsets, thresholds, (slope, offset, threshold))


def mixtures(held_out: CaptionSet, captions: int, seed: int) -> tuple[Features, Tensor]:
    """Items of `captions` captions each, and all their labels: an image shows several things."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.randint(len(held_out), (_MIXTURES, captions), generator=draw)
    features, labels = held_out.take(places.flatten())
    return features.merge(captions), labels.unflatten(0, (-1, captions)).any(1)


def calibration_quality(
    raw: np.ndarray, labels: np.ndarray, ignored: np.ndarray | None, calibration: Calibration
) -> dict[str, Any]:
    """How far calibrated scores can be trusted on labelled images; all figures 0-100.

    `ece`: expected calibration error. `at_thresholds`: quality of the tags at the thresholds.
    `best_f1`: the F1 at the best threshold of each class on these images.

    `raw`, `labels` and `ignored`: `(images, classes)`, the last two bool.
    """
    scores = calibration.scores(raw)
    given, best = (
        tag_quality(scores >= thresholds, labels, ignored)
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
