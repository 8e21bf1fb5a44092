"""Bootstrap intervals: against resampled arrays, and how often they cover on simulated data."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prompt_tuning.evaluation import bootstrap
from prompt_tuning.evaluation.bootstrap import (
    LEAST_IMAGES,
    bootstrap_map,
    paired_difference,
    resample_counts,
    resampled_maps,
    weighted_average_precisions,
)
from prompt_tuning.evaluation.metrics import average_precision, mean_average_precision


def drawn(seed: int, images: int = 40, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties; class 0 has no positive, class 1 has all, class 2 has one."""
    draw = np.random.default_rng(seed)
    scores = draw.integers(0, 12, (images, classes)) / 12
    positives = draw.random((images, classes)) < 0.2
    positives[:, 0] = False
    positives[:, 1] = True
    positives[:, 2] = np.arange(images) == 7
    return scores, positives


def simulated(
    draw: np.random.Generator, images: int, gain: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of two models that make similar mistakes, the first the better, and the labels.

    20 classes, as easy as each other, of 10 % positives, each matrix `(images, 20)`.
    """
    labels = draw.random((images, 20)) < 0.1
    shared = draw.normal(size=labels.shape)
    better = shared + 0.5 * draw.normal(size=labels.shape) + 1.3 * gain * labels
    worse = shared + 0.5 * draw.normal(size=labels.shape) + 1.1 * gain * labels
    return better, worse, labels


@pytest.mark.parametrize("seed", range(3))
def test_weighted_ap_is_that_of_the_images_resampled(seed: int) -> None:
    scores, positives = drawn(seed)
    counts = resample_counts(len(scores), 50, seed)
    assert (counts.sum(0) == len(scores)).all()
    absent = 0
    for c in range(1, 6):
        aps = weighted_average_precisions(scores[:, c], positives[:, c], counts)
        for ap, of_resample in zip(aps, counts.T, strict=True):
            rows = np.repeat(np.arange(len(scores)), of_resample)
            if positives[rows, c].any():
                assert ap == pytest.approx(average_precision(scores[rows, c], positives[rows, c]))
            else:
                assert math.isnan(ap)
                absent += 1
    assert absent  # class 2 in about a third


def test_map_of_a_resample_is_over_its_classes_and_averaged_over_seeds() -> None:
    matrices = [drawn(seed)[0] for seed in range(3)]
    _, positives = drawn(0)
    ignored = np.random.default_rng(9).random(positives.shape) < 0.2
    counts = resample_counts(40, 30, seed=0)
    maps = resampled_maps(matrices, positives, counts, ignored)
    for value, of_resample in zip(maps, counts.T, strict=True):
        rows = np.repeat(np.arange(40), of_resample)
        expected = [
            mean_average_precision(m[rows], positives[rows], ignored[rows]) for m in matrices
        ]
        assert value == pytest.approx(np.mean(expected))


def test_the_same_seed_gives_the_same_interval_and_another_another() -> None:
    better, worse, labels = simulated(np.random.default_rng(0), 200)
    one = bootstrap_map(better, labels, 200, seed=1)
    assert bootstrap_map(better, labels, 200, seed=1) == one
    assert bootstrap_map(better, labels, 200, seed=2) != one
    paired = paired_difference(better, worse, labels, 200, seed=1)
    assert paired_difference(better, worse, labels, 200, seed=1) == paired


def test_resampling_in_blocks_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    better, worse, labels = simulated(np.random.default_rng(0), 60)
    whole = paired_difference(better, worse, labels, 50, seed=1)
    monkeypatch.setattr(bootstrap, "_COUNTS_AT_ONCE", 7 * 60)
    assert paired_difference(better, worse, labels, 50, seed=1) == whole


def test_a_larger_share_gives_a_wider_interval_and_more_images_a_narrower() -> None:
    def width(images: int, share: float) -> float:
        scores, _, labels = simulated(np.random.default_rng(0), images)
        interval = bootstrap_map(scores, labels, 300, seed=0, share=share)
        assert interval.low < mean_average_precision(scores, labels) < interval.high
        return interval.high - interval.low

    assert width(200, 0.5) < width(200, 0.95)
    assert width(800, 0.95) == pytest.approx(width(200, 0.95) / 2, rel=0.3)


def test_a_matrix_differs_from_itself_by_0() -> None:
    scores, positives = drawn(0)
    difference = paired_difference(scores, scores, positives, 100, seed=0)
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)


def test_the_difference_is_that_of_the_mean_maps_and_turns_its_sign_with_the_sides() -> None:
    better, worse, labels = simulated(np.random.default_rng(0), 200)
    sides = ([better, worse], worse)
    difference = paired_difference(*sides, labels, 200, seed=0)
    maps = [mean_average_precision(s, labels) for s in (better, worse)]
    assert difference.mean == pytest.approx((maps[0] + maps[1]) / 2 - maps[1])
    turned = paired_difference(*sides[::-1], labels, 200, seed=0)
    assert (-turned.mean, -turned.high, -turned.low) == pytest.approx(
        (difference.mean, difference.low, difference.high)
    )


def test_without_positives_an_interval_is_nan() -> None:
    scores, positives = drawn(0)
    interval = bootstrap_map(scores, np.zeros_like(positives), 10, seed=0)
    assert math.isnan(interval.low) and math.isnan(interval.high)


def test_without_enough_to_resample_there_is_no_interval() -> None:
    scores, positives = drawn(0)
    few = slice(LEAST_IMAGES - 1)
    for labels, rows in (
        (positives, few),
        (positives[:, 1:2], slice(None)),
    ):  # class 1: all show it
        of_rows = scores[rows, : labels.shape[1]], labels[rows]
        interval = bootstrap_map(*of_rows, 10, seed=0)
        assert math.isnan(interval.low) and math.isnan(interval.high)
        difference = paired_difference(of_rows[0], *of_rows, 10, seed=0)
        assert difference.mean == 0
        assert math.isnan(difference.low) and math.isnan(difference.high)
    # An entry that is ignored is no image without the class.
    ignored = np.ones((40, 1), dtype=bool)
    ignored[1:] = False
    hidden = ~ignored
    assert math.isnan(bootstrap_map(scores[:, :1], hidden, 10, 0, ignored).low)
    assert not math.isnan(bootstrap_map(scores[:, :1], hidden, 10, 0).low)


def test_intervals_cover_what_they_should_in_about_95_of_100_draws() -> None:
    draw = np.random.default_rng(0)
    others = [simulated(draw, 150) for _ in range(400)]
    expected = np.mean([mean_average_precision(better, labels) for better, _, labels in others])
    better, worse, labels = simulated(draw, 50_000)
    true_difference = mean_average_precision(better, labels) - mean_average_precision(worse, labels)
    covered = np.zeros(2)
    draws = 150
    for seed in range(draws):
        better, worse, labels = simulated(draw, 150)
        interval = bootstrap_map(better, labels, 200, seed)
        difference = paired_difference(better, worse, labels, 200, seed)
        covered[0] += interval.low <= expected <= interval.high
        covered[1] += difference.low <= true_difference <= difference.high
    # 0.95 with three standard errors of 150 draws on each side is 0.90 to 1.
    assert (covered >= 0.9 * draws).all()
    assert (covered < draws).all()
