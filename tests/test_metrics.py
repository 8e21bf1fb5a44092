"""Metrics, against scikit-learn's and torchmetrics'."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    precision_recall_fscore_support,
)
from sklearn.metrics import coverage_error as sklearn_coverage_error
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multilabel_average_precision,
    multilabel_coverage_error,
    multilabel_f1_score,
    multilabel_precision,
    multilabel_recall,
)

from prompt_tuning.evaluation.metrics import (
    Rates,
    TagQuality,
    average_precision,
    average_precisions,
    best_thresholds,
    chance_map,
    coverage_error,
    expected_calibration_error,
    mean_average_precision,
    tag_quality,
    tags_at_top_k,
)


def drawn(seed: int, images: int = 60, classes: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties; the classes 0 and 4 have no positive, class 1 has all."""
    draw = np.random.default_rng(seed)
    scores = draw.integers(0, 8, (images, classes)) / 8
    positives = draw.random((images, classes)) < 0.2
    positives[:, [0, 4]] = False
    positives[:, 1] = True
    return scores, positives


@pytest.mark.parametrize("seed", range(5))
def test_ap_is_scikit_learns_also_with_ties(seed: int) -> None:
    scores, positives = drawn(seed)
    for c, ap in enumerate(average_precisions(scores, positives)):
        if c in (0, 4):
            assert ap is None
        else:
            assert ap == pytest.approx(average_precision_score(positives[:, c], scores[:, c]))


def test_ap_of_an_example_worked_out_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    positives = np.array([True, False, True, False])
    assert average_precision(scores, positives) == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_map_is_the_mean_over_the_classes_that_have_positives() -> None:
    scores, positives = drawn(0)
    present = [c for c in range(9) if c not in (0, 4)]
    expected = average_precision_score(positives[:, present], scores[:, present], average="macro")
    assert mean_average_precision(scores, positives) == pytest.approx(expected)
    assert math.isnan(mean_average_precision(scores, np.zeros_like(positives)))


def test_the_order_of_the_images_does_not_matter() -> None:
    scores, positives = drawn(0)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(scores))
        shuffled = average_precisions(scores[order], positives[order])
        assert shuffled == pytest.approx(average_precisions(scores, positives))


def test_equal_scores_and_many_random_ones_give_chance() -> None:
    _, positives = drawn(0)
    chance = chance_map(positives)
    present = [c for c in range(9) if c not in (0, 4)]
    assert chance == pytest.approx(positives[:, present].mean())
    assert mean_average_precision(np.ones(positives.shape), positives) == pytest.approx(chance)
    draw = np.random.default_rng(1)
    many = np.repeat(positives, 100, axis=0)
    assert mean_average_precision(draw.random(many.shape), many) == pytest.approx(chance, abs=0.01)


def ignored_entries(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(100 + seed).random(shape) < 0.3


def as_torch(
    scores: np.ndarray, positives: np.ndarray, ignored: np.ndarray | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What torchmetrics takes: an ignored entry has the label -1."""
    target = positives.astype(int)
    if ignored is not None:
        target[ignored] = -1
    return torch.tensor(scores), torch.tensor(target)


@pytest.mark.parametrize("seed", range(5))
def test_ap_with_ignored_entries_is_torchmetrics(seed: int) -> None:
    scores, positives = drawn(seed)
    ignored = ignored_entries(seed, positives.shape)
    found = average_precisions(scores, positives, ignored)
    present = [c for c in range(9) if c not in (0, 4)]
    assert [c for c in range(9) if found[c] is not None] == present
    expected = multilabel_average_precision(
        *as_torch(scores[:, present], positives[:, present], ignored[:, present]),
        num_labels=7,
        average=None,
        ignore_index=-1,
    )
    assert [found[c] for c in present] == pytest.approx(expected.tolist(), abs=1e-6)
    mean = mean_average_precision(scores, positives, ignored)
    assert mean == pytest.approx(expected.mean().item(), abs=1e-6)


def test_a_class_whose_positives_are_all_ignored_is_left_out() -> None:
    scores, positives = drawn(0)
    ignored = np.zeros_like(positives)
    ignored[:, 2] = positives[:, 2]
    ignored[:, 1] = True
    aps = average_precisions(scores, positives, ignored)
    assert [c for c in range(9) if aps[c] is None] == [0, 1, 2, 4]
    present = [3, 5, 6, 7, 8]
    assert chance_map(positives, ignored) == pytest.approx(positives[:, present].mean())
    assert chance_map(positives, ~positives) == pytest.approx(1)


def eleven_points(scores: np.ndarray, positives: np.ndarray) -> float:
    """11-point AP of one class by its definition; recalls are compared in whole numbers."""
    best = [0.0] * 11
    for threshold in scores:
        reached = scores >= threshold
        hits = int((reached & positives).sum())
        for tenth in range(11):
            if 10 * hits >= tenth * int(positives.sum()):
                best[tenth] = max(best[tenth], hits / int(reached.sum()))
    return sum(best) / 11


@pytest.mark.parametrize("seed", range(5))
def test_11_point_ap_is_that_of_its_definition(seed: int) -> None:
    scores, positives = drawn(seed)
    positives[:, 3] = np.arange(60) < 10  # recalls in tenths, where floats would miss some
    ignored = ignored_entries(seed, positives.shape)
    for mask in (np.zeros_like(ignored), ignored):
        aps = average_precisions(scores, positives, mask, points="11")
        assert aps[0] is None
        for c in (1, 2, 3, 5, 6, 7, 8):
            kept = ~mask[:, c]
            assert aps[c] == pytest.approx(eleven_points(scores[kept, c], positives[kept, c]))


def test_11_point_ap_of_an_example_worked_out_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    positives = np.array([True, False, True, False])
    # Recalls 0 to 0.5 have precision 1, those from 0.6 have 2/3.
    assert average_precision(scores, positives, "11") == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def assert_is_scikit_learns(quality: TagQuality, tags: np.ndarray, positives: np.ndarray) -> None:
    present = np.flatnonzero(positives.any(0))
    for c, rates in enumerate(quality.by_class):
        assert (rates is None) == (c not in present)
    of_classes = precision_recall_fscore_support(positives, tags, average=None, zero_division=0)
    for c in present:
        rates = quality.by_class[c]
        assert rates is not None
        assert triple(rates) == pytest.approx([column[c] for column in of_classes[:3]])
    micro = precision_recall_fscore_support(positives, tags, average="micro", zero_division=0)
    assert triple(quality.micro) == pytest.approx(micro[:3])
    macro = precision_recall_fscore_support(
        positives[:, present], tags[:, present], average="macro", zero_division=0
    )
    assert triple(quality.macro) == pytest.approx(macro[:3])


def triple(rates: Rates) -> list[float]:
    return [rates.precision, rates.recall, rates.f1]


@pytest.mark.parametrize("seed", range(5))
def test_f1_at_thresholds_and_at_top_k_is_scikit_learns(seed: int) -> None:
    scores, positives = drawn(seed)
    of_classes = np.random.default_rng(seed).integers(0, 9, 9) / 8
    of_classes[2] = 2.0  # a class that is never given as a tag
    for thresholds in (0.5, of_classes):
        tags = scores >= thresholds
        assert (tags == (scores >= np.broadcast_to(thresholds, 9))).all()
        assert_is_scikit_learns(tag_quality(tags, positives), tags, positives)
    for k in (1, 3, 9):
        tags = tags_at_top_k(scores, k)
        assert_is_scikit_learns(tag_quality(tags, positives), tags, positives)


@pytest.mark.parametrize("seed", range(5))
def test_f1_with_ignored_entries_is_torchmetrics(seed: int) -> None:
    scores, positives = drawn(seed)
    ignored = ignored_entries(seed, positives.shape)
    present = [c for c in range(9) if c not in (0, 4)]
    threshold = 0.55  # between two scores: torchmetrics' tags exceed it, ours reach it
    quality = tag_quality(scores >= threshold, positives, ignored)
    metrics = (multilabel_precision, multilabel_recall, multilabel_f1_score)
    for average, columns, ours in (
        ("micro", list(range(9)), quality.micro),
        ("macro", present, quality.macro),
    ):
        arguments = as_torch(scores[:, columns], positives[:, columns], ignored[:, columns])
        theirs = [
            metric(
                *arguments,
                num_labels=len(columns),
                threshold=threshold,
                average=average,
                ignore_index=-1,
            ).item()
            for metric in metrics
        ]
        assert triple(ours) == pytest.approx(theirs, abs=1e-6)


def test_rates_without_tags_are_0_and_without_positives_nan() -> None:
    _, positives = drawn(0)
    none = np.zeros_like(positives)
    assert tag_quality(none, positives).micro == Rates(0, 0, 0)
    assert tag_quality(none, positives).macro == Rates(0, 0, 0)
    undefined = tag_quality(~none, none)
    assert set(undefined.by_class) == {None}
    assert all(map(math.isnan, triple(undefined.micro) + triple(undefined.macro)))


def test_top_k_takes_the_best_k_and_of_equal_scores_the_first() -> None:
    scores = np.array([[0.1, 0.9, 0.5], [0.7, 0.7, 0.7]])
    assert tags_at_top_k(scores, 2).tolist() == [[False, True, True], [True, True, False]]


@pytest.mark.parametrize("seed", range(5))
def test_coverage_error_is_scikit_learns_and_torchmetrics(seed: int) -> None:
    scores, positives = drawn(seed)
    positives[:5] = False  # images without a tag
    expected = sklearn_coverage_error(positives, scores)
    assert coverage_error(scores, positives) == pytest.approx(expected)
    of_torch = multilabel_coverage_error(*as_torch(scores, positives), num_labels=9)
    assert coverage_error(scores, positives) == pytest.approx(of_torch.item())


def test_coverage_error_with_ignored_entries_is_that_of_the_other_classes() -> None:
    scores, positives = drawn(0)
    ignored = ignored_entries(0, positives.shape)
    of_images = [
        sklearn_coverage_error(positives[[i]][:, kept], scores[[i]][:, kept])
        for i, kept in enumerate(~ignored)
    ]
    assert coverage_error(scores, positives, ignored) == pytest.approx(np.mean(of_images))


def test_calibration_error_of_a_case_by_hand() -> None:
    # One bin has 0.1 and 0.11 of which none is right, the last one 0.95 and 1 of which one is.
    scores = np.array([[0.1, 0.95], [0.11, 1.0]])
    shown = np.array([[False, True], [False, False]])
    assert expected_calibration_error(scores, shown, bins=2) == pytest.approx(
        (0.21 + abs(0.95 + 1.0 - 1)) / 4
    )
    hidden = np.array([[False, False], [False, True]])
    assert expected_calibration_error(scores, shown, hidden, bins=2) == pytest.approx(
        (0.21 + 0.05) / 3
    )


def test_calibration_error_is_that_of_torchmetrics() -> None:
    draw = np.random.default_rng(0)
    scores = draw.random((200, 5))
    shown = draw.random((200, 5)) < scores**2
    theirs = binary_calibration_error(
        torch.from_numpy(scores.ravel()), torch.from_numpy(shown.ravel()).int(), n_bins=15
    )
    assert expected_calibration_error(scores, shown) == pytest.approx(float(theirs), abs=1e-6)
    truth = draw.random((100_000, 2))
    honest = draw.random(truth.shape) < truth
    assert expected_calibration_error(truth, honest) < 0.01
    assert expected_calibration_error(truth**2, honest) > 0.1


def test_best_thresholds_are_the_best_of_all() -> None:
    draw = np.random.default_rng(1)
    shown = draw.random((80, 4)) < 0.3
    shown[:, 3] = False
    scores = (draw.normal(size=(80, 4)) + shown).round(1)  # with ties
    hidden = draw.random((80, 4)) < 0.1
    best = best_thresholds(scores, shown, hidden)
    assert np.isinf(best[3])
    reached = tag_quality(scores >= best, shown, hidden)
    for c in range(3):
        of_all = [tag_quality(scores >= t, shown, hidden).by_class[c] for t in np.unique(scores)]
        ours = reached.by_class[c]
        assert ours is not None
        assert ours.f1 == max(rates.f1 for rates in of_all if rates)
