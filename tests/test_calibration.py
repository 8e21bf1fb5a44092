"""Calibrated scores and thresholds, against scores whose probabilities are known."""

from __future__ import annotations

import json

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit

from prompt_tuning.backbones.base import Geometry
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.evaluation.method_scores import method_scores
from prompt_tuning.evaluation.metrics import best_thresholds
from prompt_tuning.features import Features
from prompt_tuning.tagging.calibration import (
    Calibration,
    calibrate_on_captions,
    calibration_quality,
    f1_thresholds,
    fit_sigmoids,
    mixtures,
)
from prompt_tuning.tuning.caption_set import CaptionSet

SLOPES = np.array([3.0, 4.0, 5.0, 4.0])
OFFSETS = np.array([-3.0, -6.0, -5.0, -8.0])
GEOMETRY = Geometry(
    scale=4.0, aggregation="log_mean_exp", local_temperature=30.0, global_weight=0.25
)


def drawn(items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Raw scores `(items, 4)`, with labels drawn with the probabilities that they stand for."""
    draw = np.random.default_rng(seed)
    raw = draw.normal(1.0, 0.7, (items, 4))
    return raw, draw.random(raw.shape) < expit(SLOPES * raw + OFFSETS)


def known(slopes: np.ndarray = SLOPES, offsets: np.ndarray = OFFSETS) -> Calibration:
    raw, _ = drawn(20_000)
    thresholds = f1_thresholds(expit(slopes * raw + offsets))
    return Calibration(slopes, offsets, thresholds, (1.0, 1.0, 1.0))


def test_sigmoids_are_recovered() -> None:
    slopes, offsets, slope, offset = fit_sigmoids(*drawn(20_000))
    np.testing.assert_allclose(slopes, SLOPES, rtol=0.06)
    np.testing.assert_allclose(offsets, OFFSETS, rtol=0.06)
    assert 3 < slope < 5
    assert -8 < offset < -3


def test_sigmoids_do_not_depend_on_the_scale_of_scores() -> None:
    raw, labels = drawn(300)
    slopes, offsets, slope, offset = fit_sigmoids(raw, labels)
    scaled = fit_sigmoids(100 * raw - 7, labels)
    np.testing.assert_allclose(100 * scaled[0], slopes, rtol=1e-3)
    np.testing.assert_allclose(scaled[1] - 7 * scaled[0], offsets, rtol=1e-3)
    np.testing.assert_allclose(100 * scaled[2], slope, rtol=1e-3)
    np.testing.assert_allclose(scaled[3] - 7 * scaled[2], offset, rtol=1e-3)


def test_a_rare_category_keeps_near_to_what_all_share() -> None:
    raw, labels = drawn(400)
    labels[:, 1] = False  # never shown: alone it would have no slope at all
    labels[:, 3] = False
    labels[0, 3] = True  # shown once, with the lowest score: alone it would have a negative one
    raw[0, 3] = raw[:, 3].min()
    slopes, offsets, slope, offset = fit_sigmoids(raw, labels)
    assert (slopes > slope / 3).all()
    assert (slopes < slope * 3).all()
    assert (slopes[1], offsets[1]) == (slope, offset)
    # The less an item counts as, the nearer all are.
    fewer, _, common, _ = fit_sigmoids(raw, labels, weight=0.01)
    assert np.ptp(fewer / common) < np.ptp(slopes / slope)


def test_thresholds_reach_the_best_f1_there_is() -> None:
    raw, labels = drawn(20_000, seed=1)
    scores = expit(SLOPES * raw + OFFSETS)
    thresholds = f1_thresholds(scores)
    np.testing.assert_allclose(thresholds, best_thresholds(scores, labels), atol=0.06)
    quality = calibration_quality(raw, labels, None, known())
    assert quality["ece"] < 1
    for average in ("micro", "macro"):
        gap = quality["best_f1"][average] - quality["at_thresholds"][average]["f1"]
        assert -0.5 < gap < 0.5
    # The theorem: half of the F1 that they reach.
    reached = quality["at_thresholds"]["macro"]["f1"] / 100
    np.testing.assert_allclose(2 * thresholds.mean(), reached, atol=0.02)


def test_quality_counts_what_is_labelled_and_shows_what_is_wrong() -> None:
    raw, labels = drawn(2000, seed=1)
    ignored = np.zeros_like(labels)
    ignored[:, 0] = True
    whole = calibration_quality(raw, labels, ignored, known())
    spoilt = np.where(ignored, ~labels, labels)
    assert calibration_quality(raw, spoilt, ignored, known()) == whole
    sure = calibration_quality(raw, labels, None, known(3 * SLOPES, 3 * OFFSETS))
    assert sure["ece"] > 3 * calibration_quality(raw, labels, None, known())["ece"]
    # Thresholds that belong to other scores.
    high = Calibration.from_json({**known().to_json(), "offsets": (OFFSETS + 2).tolist()})
    quality = calibration_quality(raw, labels, None, high)
    reached = quality["at_thresholds"]["macro"]
    assert quality["best_f1"]["macro"] - reached["f1"] > 2
    assert reached["recall"] > reached["precision"]


def test_a_calibration_reads_back_and_is_cut_and_extended() -> None:
    calibration = known()
    read = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert read.to_json() == calibration.to_json()
    raw, _ = drawn(5)
    some = read.of([2, 0]).adding(1)
    expected = np.column_stack([calibration.scores(raw)[:, [2, 0]], expit(raw[:, 1] + 1)])
    np.testing.assert_array_equal(some.scores(raw[:, [2, 0, 1]]), expected)
    assert some.thresholds[2] == 1.0


def captions(count: int, seed: int = 0) -> tuple[ClassFeatures, CaptionSet]:
    """Four classes, and captions near to the classes of their labels."""
    draw = torch.Generator().manual_seed(seed)
    classes = F.normalize(torch.randn(4, 16, generator=draw), dim=-1)
    labels = torch.rand(count, 4, generator=draw) < 0.25
    near = labels.float() @ classes + 0.3 * torch.randn(count, 16, generator=draw)
    unit = F.normalize(near, dim=-1)
    features = Features(unit, unit, torch.ones(count, dtype=torch.long))
    return ClassFeatures(classes, classes), CaptionSet.of_all(features, labels)


def test_mixtures_have_the_labels_of_all_that_is_in_them() -> None:
    _, held_out = captions(30)
    mixed, labels = mixtures(held_out, 3, seed=5)
    assert set(mixed.counts.tolist()) == {3}
    for i in range(20):
        parts = mixed.regions[3 * i : 3 * i + 3]
        places = [(held_out.features.regions == part).all(1).nonzero().item() for part in parts]
        assert torch.equal(labels[i], held_out.labels[places].any(0))
    again, _ = mixtures(held_out, 3, seed=5)
    assert torch.equal(again.pooled, mixed.pooled)


def test_captions_calibrate_however_few() -> None:
    classes, held_out = captions(300)
    for count in (300, 1):
        some = CaptionSet(held_out.features, held_out.labels, torch.arange(count))
        calibration = calibrate_on_captions(classes, some, GEOMETRY)
        assert (calibration.slopes > 0).all()
        assert ((calibration.thresholds > 0) & (calibration.thresholds <= 0.5)).all()
        assert calibrate_on_captions(classes, some, GEOMETRY).to_json() == calibration.to_json()


def test_a_category_that_no_caption_shows_is_no_tag_of_everything() -> None:
    classes, held_out = captions(300)
    unseen = CaptionSet.of_all(*held_out.take((~held_out.labels[:, 2]).nonzero().flatten()))
    calibration = calibrate_on_captions(classes, unseen, GEOMETRY)
    of_unseen = (calibration.slopes[2], calibration.offsets[2], calibration.thresholds[2])
    assert of_unseen == calibration.shared
    raw = method_scores(unseen.features, classes, GEOMETRY, "mean")["fused"]
    tags = calibration.scores(raw) >= calibration.thresholds
    assert tags[:, 2].mean() < 0.2
    assert 0.1 < tags[:, 0].mean() < 0.6


def test_captions_that_are_told_apart_make_no_score_certain() -> None:
    raw = np.linspace(0, 1, 40)[:, None] + np.zeros((1, 3))
    labels = raw > 0.5
    slopes, offsets, _, _ = fit_sigmoids(raw, labels)
    scores = expit(slopes * raw + offsets)
    assert scores.max() < 1 - 1e-6
    assert scores.min() > 1e-6
    assert (scores[labels] > 0.5).all()
