"""The losses, against hand-made examples, naive loops and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_tuning.tuning.losses import order_loss, ranking_loss


def naive_ranking(scores: Tensor, positives: Tensor, margin: float) -> float:
    total = 0.0
    for item in range(scores.shape[0]):
        for p in range(scores.shape[1]):
            for n in range(scores.shape[1]):
                if positives[item, p] and not positives[item, n]:
                    total += max(0.0, margin - float(scores[item, p]) + float(scores[item, n]))
    return total


def naive_order(tuned: Tensor, anchor: Tensor, temperature: float) -> float:
    pairs = [(i, j) for i in range(len(tuned)) for j in range(i + 1, len(tuned))]

    def distribution(features: Tensor) -> list[float]:
        raised = [math.exp(temperature * float(features[i] @ features[j])) for i, j in pairs]
        return [value / sum(raised) for value in raised]

    p, q = distribution(tuned), distribution(anchor)
    return sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))


def random_features(classes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(classes, 7, generator=generator, dtype=torch.float64), dim=-1)


def random_batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    return scores, torch.rand(6, 5, generator=generator) < 0.4


def test_ranking_loss_of_an_example_worked_out_by_hand() -> None:
    scores = torch.tensor([[1.0, 0.5, 3.0], [0.0, 2.0, 1.0]])
    positives = torch.tensor([[True, False, False], [True, True, False]])
    # Row 1: (1 - 1 + 0.5) + (1 - 1 + 3). Row 2: (1 - 0 + 1) + max(0, 1 - 2 + 1).
    assert float(ranking_loss(scores, positives, margin=1.0)) == pytest.approx(5.5)


@pytest.mark.parametrize("margin", [0.2, 1.0, 3.0])
def test_ranking_loss_is_the_triple_loop(margin: float) -> None:
    scores, positives = random_batch()
    expected = naive_ranking(scores, positives, margin)
    assert float(ranking_loss(scores, positives, margin)) == pytest.approx(expected)


def test_ranking_loss_gradient_agrees_with_finite_differences() -> None:
    scores, positives = random_batch()
    assert torch.autograd.gradcheck(
        lambda s: ranking_loss(s, positives, 1.0), scores.requires_grad_()
    )


@pytest.mark.parametrize("value", [True, False])
def test_rows_that_are_all_positive_or_all_negative_cost_nothing(value: bool) -> None:
    scores = random_batch()[0].requires_grad_()
    loss = ranking_loss(scores, torch.full(scores.shape, value), margin=1.0)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_ranking_loss_of_an_empty_share_of_a_batch_is_zero() -> None:
    none = torch.zeros(0, 5, requires_grad=True)
    loss = ranking_loss(none, torch.zeros(0, 5, dtype=torch.bool), margin=1.0)
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("temperature", [1.0, 10.0, 100.0])
def test_order_loss_is_the_naive_divergence_over_pairs(temperature: float) -> None:
    tuned, anchor = random_features(6, seed=1), random_features(6, seed=2)
    expected = naive_order(tuned, anchor, temperature)
    assert float(order_loss(tuned, anchor, temperature)) == pytest.approx(expected)


def test_order_loss_is_zero_for_the_same_features_and_positive_for_others() -> None:
    features = random_features(6, seed=1)
    assert float(order_loss(features, features, 100.0)) == pytest.approx(0, abs=1e-12)
    for seed in range(2, 12):
        assert float(order_loss(features, random_features(6, seed), 10.0)) > 0


def test_order_loss_gradient_agrees_with_finite_differences() -> None:
    anchor = random_features(5, seed=2)
    assert torch.autograd.gradcheck(
        lambda tuned: order_loss(tuned, anchor, 10.0),
        random_features(5, seed=1).requires_grad_(),
    )
