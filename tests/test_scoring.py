"""Scores, against loops written from the formulas in docs/method.md and docs/embedded-model.md."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from prompt_tuning.backbones.base import Geometry
from prompt_tuning.features import Features
from prompt_tuning.tuning.scoring import (
    ScoringSettings,
    branch_scores,
    fuse,
    global_scores,
    raw_image_scores,
    region_scores,
    scores_of_equal,
    scores_of_ragged,
)

DIM, CLASSES = 6, 4
CLIP = Geometry(scale=4.0, aggregation="softmax", local_temperature=50.0, global_weight=0.65)
EMBEDDED = Geometry(
    scale=4.0, aggregation="log_mean_exp", local_temperature=30.0, global_weight=0.5
)
both_geometries = pytest.mark.parametrize(
    "geometry", [CLIP, EMBEDDED], ids=["softmax", "log_mean_exp"]
)


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def ragged(counts: list[int], seed: int = 0) -> Features:
    return Features(
        unit(len(counts), DIM, seed=seed),
        unit(sum(counts), DIM, seed=seed + 1),
        torch.tensor(counts),
    )


def naive_region_score(regions: Tensor, class_feature: Tensor, geometry: Geometry) -> float:
    cosines = [float(region @ class_feature) for region in regions]
    raised = [math.exp(geometry.local_temperature * cosine) for cosine in cosines]
    if geometry.aggregation == "softmax":
        shares = [value / sum(raised) for value in raised]
        return sum(
            geometry.scale * cosine * share for cosine, share in zip(cosines, shares, strict=True)
        )
    mean = sum(raised) / len(raised)
    return geometry.scale / geometry.local_temperature * math.log(mean)


@both_geometries
def test_scores_are_those_of_a_loop_over_items_and_classes(geometry: Geometry) -> None:
    items, class_pooled, class_local = (
        ragged([3, 1, 5, 2]),
        unit(CLASSES, DIM, seed=8),
        unit(CLASSES, DIM, seed=9),
    )
    of_pooled, of_regions = branch_scores(items, class_pooled, class_local, geometry)
    assert of_pooled.shape == of_regions.shape == (4, CLASSES)
    for item, regions in enumerate(items.regions.split([3, 1, 5, 2])):
        for c in range(CLASSES):
            cosine = float(items.pooled[item] @ class_pooled[c])
            assert float(of_pooled[item, c]) == pytest.approx(geometry.scale * cosine)
            expected = naive_region_score(regions, class_local[c], geometry)
            assert float(of_regions[item, c]) == pytest.approx(expected)


@both_geometries
def test_raw_image_scores_are_the_mean_of_both_branches_scores(geometry: Geometry) -> None:
    items, class_pooled, class_local = (
        ragged([4, 4, 4]),
        unit(CLASSES, DIM, seed=8),
        unit(CLASSES, DIM, seed=9),
    )
    scores = raw_image_scores(items, class_pooled, class_local, geometry)
    expected = fuse(*branch_scores(items, class_pooled, class_local, geometry), geometry)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)


@both_geometries
def test_the_best_tile_gives_half_of_the_global_score(geometry: Geometry) -> None:
    items, class_pooled, class_local = (
        ragged([4, 4, 4])._replace(tiles=unit(3, 5, DIM, seed=7)),
        unit(CLASSES, DIM, seed=8),
        unit(CLASSES, DIM, seed=9),
    )
    assert items.tiles is not None
    of_pooled, _ = branch_scores(items, class_pooled, class_local, geometry)
    for item in range(3):
        for c in range(CLASSES):
            whole = float(items.pooled[item] @ class_pooled[c])
            best = max(float(tile @ class_pooled[c]) for tile in items.tiles[item])
            expected = geometry.scale * (whole + best) / 2
            assert float(of_pooled[item, c]) == pytest.approx(expected)
    scores = raw_image_scores(items, class_pooled, class_local, geometry)
    fused = fuse(*branch_scores(items, class_pooled, class_local, geometry), geometry)
    torch.testing.assert_close(scores, fused, atol=1e-6, rtol=0)


@both_geometries
def test_an_items_score_does_not_depend_on_the_items_beside_it(geometry: Geometry) -> None:
    items, classes = ragged([2, 7, 1]), unit(CLASSES, DIM, seed=9)
    together = region_scores(items.regions, items.counts, classes, geometry)
    for item in range(3):
        alone = items.take(torch.tensor([item]))
        scores = region_scores(alone.regions, alone.counts, classes, geometry)
        torch.testing.assert_close(scores[0], together[item], atol=1e-12, rtol=0)


@both_geometries
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equally_many_regions_score_the_same_scattered_or_not(
    geometry: Geometry, dtype: torch.dtype
) -> None:
    regions, counts = unit(5 * 7, DIM, seed=3).to(dtype), torch.full((5,), 7)
    weight = unit(5, CLASSES, seed=4).to(dtype)

    def scored(equal: bool) -> tuple[Tensor, Tensor]:
        classes = unit(CLASSES, DIM, seed=9).to(dtype).requires_grad_()
        cosines = regions @ classes.T
        if equal:
            scores = scores_of_equal(cosines.unflatten(0, (5, 7)), geometry)
        else:
            scores = scores_of_ragged(cosines, counts, geometry)
        (weight * scores).sum().backward()
        assert classes.grad is not None
        return scores.detach(), classes.grad

    exact = {"rtol": 0, "atol": 5e-4 if dtype == torch.float32 else 1e-12}
    for one, other in zip(scored(equal=True), scored(equal=False), strict=True):
        torch.testing.assert_close(one, other, **exact)


@both_geometries
def test_only_equally_many_regions_take_the_path_without_scattering(geometry: Geometry) -> None:
    classes = unit(CLASSES, DIM, seed=9)
    for counts in ([3, 3], [4], [2, 4], [4, 2], [1, 1, 4]):
        items = ragged(counts)
        cosines = items.regions @ classes.T
        scores = region_scores(items.regions, items.counts, classes, geometry)
        if len(set(counts)) == 1:
            expected = scores_of_equal(cosines.unflatten(0, (len(counts), -1)), geometry)
        else:
            expected = scores_of_ragged(cosines, items.counts, geometry)
        assert torch.equal(scores, expected)


@both_geometries
@pytest.mark.parametrize("counts", [[3, 1, 2], [2, 2, 2]], ids=["ragged", "equal"])
def test_region_scores_gradient_agrees_with_finite_differences(
    geometry: Geometry, counts: list[int]
) -> None:
    items = ragged(counts)
    assert torch.autograd.gradcheck(
        lambda classes: region_scores(items.regions, items.counts, classes, geometry),
        unit(CLASSES, DIM, seed=9).requires_grad_(),
    )


@both_geometries
@pytest.mark.parametrize("temperature", [1e-3, 1000.0])
def test_extreme_temperatures_stay_finite_and_within_the_cosines(
    geometry: Geometry, temperature: float
) -> None:
    items, classes = ragged([4, 4, 4]), unit(CLASSES, DIM, seed=9)
    regions, classes = items.regions.float(), classes.float()
    extreme = geometry.model_copy(update={"local_temperature": temperature})
    scores = region_scores(regions, items.counts, classes, extreme)
    cosines = (regions @ classes.T).view(3, 4, CLASSES)
    nearest = cosines.amax(1) if temperature > 1 else cosines.mean(1)
    torch.testing.assert_close(scores, 4 * nearest, atol=0.02, rtol=0)


@both_geometries
def test_strong_noise_on_regions_leaves_scores_finite(geometry: Geometry) -> None:
    regions, classes = -30 * torch.ones(2, DIM), torch.full((1, DIM), DIM**-0.5)
    scores = region_scores(regions, torch.tensor([2]), classes, geometry)
    torch.testing.assert_close(scores, torch.tensor([[-4 * 30 * DIM**0.5]]))


@both_geometries
def test_an_empty_share_of_a_batch_has_no_scores(geometry: Geometry) -> None:
    none = ragged([3, 2]).take(torch.arange(0))
    classes = unit(CLASSES, DIM, seed=9).requires_grad_()
    scores = region_scores(none.regions, none.counts, classes, geometry)
    assert scores.shape == (0, CLASSES)
    scores.sum().backward()


def test_fusion_by_mean_and_by_softmax() -> None:
    one, other = unit(3, CLASSES, seed=1), unit(3, CLASSES, seed=2)
    torch.testing.assert_close(fuse(one, other, CLIP), 0.65 * one + 0.35 * other)
    competing = fuse(one, other, CLIP, "softmax")
    row, c = 1, 2
    share = math.exp(one[row, c]) / sum(math.exp(s) for s in one[row])
    share_of_other = math.exp(other[row, c]) / sum(math.exp(s) for s in other[row])
    assert float(competing[row, c]) == pytest.approx(0.65 * share + 0.35 * share_of_other)
    torch.testing.assert_close(competing.sum(-1), torch.ones(3, dtype=torch.float64))


def test_settings_replace_only_what_they_give() -> None:
    assert ScoringSettings().resolve(CLIP) == CLIP
    changed = ScoringSettings(scale=10.0, global_weight=0.0).resolve(EMBEDDED)
    assert changed == Geometry(
        scale=10.0, aggregation="log_mean_exp", local_temperature=30.0, global_weight=0.0
    )
    items, classes = ragged([2, 1]), unit(CLASSES, DIM, seed=2)
    scores = global_scores(items, classes, changed)
    torch.testing.assert_close(scores, 10 * items.pooled @ classes.T)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"global_weight": 1.5}, {"fusion": "max"}])
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ScoringSettings.model_validate(wrong)
