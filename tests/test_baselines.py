"""The methods and the figures that compare them, against computing them plainly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES
from sklearn.metrics import (
    average_precision_score,
    coverage_error,
    f1_score,
    precision_recall_curve,
)

from prompt_tuning.backbones.base import VLM, Geometry
from prompt_tuning.categories import CategoryList
from prompt_tuning.clip_templates import CLIP_TEMPLATES
from prompt_tuning.evaluation import score_matrix
from prompt_tuning.evaluation.baselines import (
    UNTUNED,
    ClassFeatures,
    MethodFeatures,
    untuned_baselines,
)
from prompt_tuning.evaluation.compare import (
    MethodScores,
    compare_methods,
    figures_without_meaning,
    precision_recall,
    score_methods,
)
from prompt_tuning.evaluation.method_scores import method_scores
from prompt_tuning.evaluation.metrics import average_precision
from prompt_tuning.features import Features
from prompt_tuning.tuning.caption_set import CaptionSet

GEOMETRY = Geometry(
    scale=4.0, aggregation="log_mean_exp", local_temperature=30.0, global_weight=0.25
)
CATEGORIES = CategoryList.model_validate_json(
    json.dumps(
        {
            "categories": [
                {"name": "dog", "synonyms": ["hound"], "kinds": ["beagle", "poodle"]},
                {"name": "car", "synonyms": ["automobile"]},
                {"name": "lemon"},
                {"name": "violin"},
            ]
        }
    )
)
DIM = 8


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def some_items(count: int, dim: int = DIM) -> Features:
    """Items with one to three regions each."""
    counts = torch.arange(count) % 3 + 1
    return Features(unit(count, dim, seed=1), unit(int(counts.sum()), dim, seed=2), counts)


def some_methods() -> MethodFeatures:
    def classes(seed: int) -> ClassFeatures:
        return ClassFeatures(unit(4, DIM, seed=seed), unit(4, DIM, seed=seed + 100))

    untuned = {method: classes(seed) for seed, method in enumerate(UNTUNED, start=10)}
    return MethodFeatures(untuned, {0: classes(20), 7: classes(21)})


@pytest.fixture(scope="module")
def scores() -> MethodScores:
    return score_methods(some_items(60), some_methods(), GEOMETRY, "mean")


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """No item shows a violin."""
    drawn = np.random.default_rng(0).random((60, 4)) < 0.3
    drawn[:, 3] = False
    return drawn


def test_baselines_are_means_of_what_they_say(embedded_vlm: VLM) -> None:
    captions = some_items(6, embedded_vlm.dim)
    shown = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]] + 2 * [[0] * 4])
    shown[5] = torch.tensor([1, 1, 1, 1])  # held out: no method may see it
    train = CaptionSet(captions, shown.bool(), torch.arange(5))
    methods = untuned_baselines(embedded_vlm, CATEGORIES, train)
    assert tuple(methods) == UNTUNED

    def mean_of(texts: list[str]) -> torch.Tensor:
        return F.normalize(F.normalize(embedded_vlm.encode_text(texts), dim=-1).mean(0), dim=-1)

    def photos(*words: str) -> torch.Tensor:
        return mean_of([f"a photo of a {word}." for word in words])

    expected = {
        "zero_shot": [photos(name) for name in CATEGORIES.names],
        "templates": [
            mean_of([fill(name) for fill in OPENAI_IMAGENET_TEMPLATES]) for name in CATEGORIES.names
        ],
        "synonym_average": [
            photos("dog", "hound", "beagle", "poodle"),
            photos("car", "automobile"),
            photos("lemon"),
            photos("violin"),
        ],
        "caption_average": [
            F.normalize(captions.pooled[:2].mean(0), dim=-1),
            F.normalize(captions.pooled[1:3].mean(0), dim=-1),
            captions.pooled[3],
            photos("violin"),  # no caption shows one
        ],
    }
    assert len(CLIP_TEMPLATES) == 80
    of_open_clip = [fill("{}") for fill in OPENAI_IMAGENET_TEMPLATES]
    assert list(CLIP_TEMPLATES) == of_open_clip
    for method, rows in expected.items():
        torch.testing.assert_close(methods[method].pooled, torch.stack(rows), atol=1e-5, rtol=0)
        torch.testing.assert_close(methods[method].local, methods[method].pooled)


def test_scores_that_are_kept_in_a_file_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    items, classes = some_items(300), some_methods().tuned[0]
    in_memory = method_scores(items, classes, GEOMETRY, "mean")
    monkeypatch.setattr(score_matrix, "_LARGEST_IN_MEMORY", 0)
    in_files = method_scores(items, classes, GEOMETRY, "mean")
    for kind, scores in in_memory.items():
        assert isinstance(in_files[kind], np.memmap)
        assert np.array_equal(in_files[kind], scores)


def test_scores_of_a_method() -> None:
    items, classes = some_items(5), some_methods().tuned[0]
    scores = method_scores(items, classes, GEOMETRY, "mean")
    regions = items.regions.split(items.counts.tolist())
    for i in range(5):
        for c in range(4):
            pooled = 4 * float(items.pooled[i] @ classes.pooled[c])
            cosines = (regions[i] @ classes.local[c]).double().numpy()
            local = 4 / 30 * np.log(np.exp(30 * cosines).mean())
            found = [scores[branch][i, c] for branch in ("global", "local", "fused")]
            wanted = [pooled, local, 0.25 * pooled + 0.75 * local]
            np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_figures_are_those_of_scikit_learn(scores: MethodScores, labels: np.ndarray) -> None:
    found = compare_methods(scores, labels, CATEGORIES)
    assert set(found["map"]) == {*UNTUNED, "tuned"}

    def aps(of_set: dict[str, np.ndarray], branch: str = "fused") -> np.ndarray:
        return np.array(
            [100 * average_precision_score(labels[:, c], of_set[branch][:, c]) for c in range(3)]
        )

    for method, sets in scores.items():
        for branch in ("global", "local", "fused"):
            means = [aps(of_set, branch).mean() for of_set in sets]
            assert found["map"][method][branch] == pytest.approx(np.mean(means))
            if method == "tuned":
                assert found["map_by_seed"]["tuned"][branch] == pytest.approx(means)
        of_classes = np.mean([aps(of_set) for of_set in sets], axis=0)
        assert found["ap"][method]["violin"] is None
        assert list(found["ap"][method].values())[:3] == pytest.approx(of_classes)
        eleven = [
            100 * average_precision(of_set["fused"][:, c], labels[:, c], "11")
            for of_set in sets
            for c in range(3)
        ]
        assert found["map_11_points"][method] == pytest.approx(np.mean(eleven))
    assert found["positives"] == dict(zip(CATEGORIES.names, labels.sum(0).tolist(), strict=True))
    assert found["chance_map"] == pytest.approx(100 * labels[:, :3].mean())

    f1 = []
    for of_set in scores["tuned"]:
        tags = np.zeros_like(labels)
        np.put_along_axis(tags, (-of_set["fused"]).argsort(1)[:, :3], True, axis=1)
        f1.append([100 * f1_score(labels, tags, average="micro")])
        f1[-1].append(100 * f1_score(labels[:, :3], tags[:, :3], average="macro"))
    assert found["f1_at_top_k"]["k"] == 3
    of_tuned = found["f1_at_top_k"]["tuned"]
    assert [of_tuned[average]["f1"] for average in ("micro", "macro")] == pytest.approx(
        np.mean(f1, axis=0)
    )
    assert found["coverage_error"]["tuned"] == pytest.approx(
        np.mean([coverage_error(labels, of_set["fused"]) for of_set in scores["tuned"]])
    )
    json.dumps(found, allow_nan=False)


def test_intervals_hold_the_figures(scores: MethodScores, labels: np.ndarray) -> None:
    found = compare_methods(scores, labels, CATEGORIES)
    assert set(found["ci"]) == {*UNTUNED, "tuned", *(f"tuned - {method}" for method in UNTUNED)}
    for name, (low, high) in found["ci"].items():
        method, _, other = name.partition(" - ")
        figure = found["map"][method]["fused"] - (found["map"][other]["fused"] if other else 0)
        assert low < figure < high


def test_figures_that_mean_nothing_are_said(scores: MethodScores, labels: np.ndarray) -> None:
    names = CATEGORIES.names
    assert figures_without_meaning(labels, None, names, "images") == []
    one = labels[:1] | np.eye(len(names), dtype=bool)[:1]
    always, few = figures_without_meaning(one, None, names, "images")
    assert always.startswith("All images (1) show every measured class (")
    assert names[0] in always and always.endswith("so these mAPs mean nothing.")
    assert few == "Intervals need at least 10 images (got 1)."
    of_one = {
        method: [{b: s[:1] for b, s in of_set.items()} for of_set in sets]
        for method, sets in scores.items()
    }
    found = compare_methods(of_one, one, CATEGORIES)
    assert found["ci"] == {}
    json.dumps(found, allow_nan=False)
    # One class of several, also where what is not known is all that lacks it.
    shown = labels.copy()
    shown[1:, 1] = True
    shown[0, 1] = False
    unknown = ~shown & (np.arange(len(names)) == 1)
    text = f"All held-out captions show {names[1]}: any scores reach an AP of 100 there, and the "
    for of, ignored in ((shown, unknown), (shown | unknown, None)):
        [sentence] = figures_without_meaning(of, ignored, names, "held-out captions")
        assert sentence == text + "mAP includes it."
    assert figures_without_meaning(shown, None, names, "held-out captions") == []


def test_what_is_ignored_has_no_say(scores: MethodScores, labels: np.ndarray) -> None:
    ignored = np.random.default_rng(3).random(labels.shape) < 0.2
    found = compare_methods(scores, labels, CATEGORIES, ignored)
    other_scores = {
        method: [{b: np.where(ignored, -s, s) for b, s in of_set.items()} for of_set in sets]
        for method, sets in scores.items()
    }
    assert compare_methods(other_scores, labels, CATEGORIES, ignored) == found
    assert compare_methods(scores, labels ^ ignored, CATEGORIES, ignored) == found
    assert compare_methods(scores, labels, CATEGORIES) != found


def test_two_classes_have_no_three_best(scores: MethodScores, labels: np.ndarray) -> None:
    two = {
        method: [{branch: of[:, :2] for branch, of in of_set.items()} for of_set in sets]
        for method, sets in scores.items()
    }
    categories = CategoryList(categories=CATEGORIES.categories[:2])
    assert compare_methods(two, labels[:, :2], categories)["f1_at_top_k"]["k"] == 2


def test_arms_are_read_as_they_were_written(tmp_path: Path) -> None:
    methods, file = some_methods(), tmp_path / "class_features.safetensors"
    methods.save(file)
    read = MethodFeatures.load(file)
    assert list(read.untuned) == list(UNTUNED)
    assert list(read.tuned) == [0, 7]
    for before, after in (
        *((methods.untuned[method], read.untuned[method]) for method in UNTUNED),
        *((methods.tuned[seed], read.tuned[seed]) for seed in (0, 7)),
    ):
        assert torch.equal(before.pooled, after.pooled)
        assert torch.equal(before.local, after.local)


def test_precision_and_recall_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(5)
    scores, positives = draw.random(80), draw.random(80) < 0.3
    precision, recall, _ = precision_recall_curve(positives, scores)
    points = precision_recall(scores, positives, 1000)
    assert len(points) == positives.sum()
    known = {(round(r, 9), round(p, 9)) for r, p in zip(recall, precision, strict=True)}
    assert {(round(r, 9), round(p, 9)) for r, p in points} <= known
    few = precision_recall(scores, positives, 5)
    assert len(few) == 5
    assert (few[0], few[-1]) == (points[0], points[-1])
