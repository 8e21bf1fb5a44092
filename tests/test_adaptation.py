"""Labelled images move an artifact's class features, as far as they can justify."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import Done, run_datafree
from scipy.optimize import minimize
from tiny_artifact import NAMES

from prompt_tuning.backbones.base import Geometry, VLMIdentity, VLMSettings
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.datasets.scenes import SceneSettings, compose_scenes
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.evaluation.metrics import average_precisions
from prompt_tuning.features import Features
from prompt_tuning.tagging.adaptation import (
    adapt_to_features,
    clearly_worse,
    fitted_moves,
    raw_scores,
    score_gradients,
)
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.calibration import Calibration
from prompt_tuning.tagging.new_labels import TunedTokens
from prompt_tuning.tagging.photo_calibration import Evidence
from prompt_tuning.tagging.tagger import Tagger

CLASSES, DIM, REGIONS = 5, 12, 4
GEOMETRY = Geometry(scale=4.0, aggregation="log_mean_exp", local_temperature=30, global_weight=0.4)


def an_artifact(classes: ClassFeatures) -> Artifact:
    names = [f"thing{c}" for c in range(CLASSES)]
    return Artifact(
        categories=CategoryList(categories=tuple(Category(name=name) for name in names)),
        tree={"all": {"all": names}},
        classes=classes,
        tokens=TunedTokens({}, {"global": 0.0, "local": 0.0}),
        geometry=GEOMETRY,
        fusion="mean",
        calibration=Calibration(
            np.full(CLASSES, 3.0), np.full(CLASSES, -3.0), np.full(CLASSES, 0.4), (3.0, -3.0, 0.4)
        ),
        vlm_settings=VLMSettings(),
        vlm=VLMIdentity(
            kind="embedded", model="m", weights="w", preprocessing="p", resolution=32, dim=DIM
        ),
    )


def world(images: int, seed: int) -> tuple[Artifact, Features, np.ndarray]:
    """An artifact whose class features are far from those that the images obey."""
    draw = torch.Generator().manual_seed(7)  # the same things in each world
    true = F.normalize(torch.randn(CLASSES, DIM, generator=draw), dim=-1)
    wrong = F.normalize(true + 0.25 * torch.randn(CLASSES, DIM, generator=draw), dim=-1)
    draw = torch.Generator().manual_seed(seed)
    labels = torch.rand(images, CLASSES, generator=draw) < 0.3
    noise = 0.25 * torch.randn(images, REGIONS, DIM, generator=draw)
    regions = F.normalize((labels.float() @ true)[:, None] + noise, dim=-1)
    features = Features(
        F.normalize(regions.mean(1), dim=-1),
        regions.flatten(0, 1),
        torch.full((images,), REGIONS),
    )
    return an_artifact(ClassFeatures(wrong, wrong.clone())), features, labels.numpy()


def mean_ap(artifact: Artifact, features: Features, labels: np.ndarray) -> float:
    scores = raw_scores(features, artifact.classes, GEOMETRY)
    return float(np.mean([ap for ap in average_precisions(scores, labels) if ap is not None]))


def known(labels: np.ndarray) -> np.ndarray:
    return np.zeros_like(labels)


def test_more_images_make_images_that_did_not_teach_better() -> None:
    artifact, unseen, truth = world(600, seed=100)
    gains = []
    for images in (10, 40, 160):
        _, features, labels = world(images, seed=images)
        adapted = adapt_to_features(artifact, features, labels, known(labels))
        assert adapted.moved
        gains.append(mean_ap(adapted.artifact, unseen, truth) - mean_ap(artifact, unseen, truth))
    assert gains[0] > 0
    assert gains == sorted(gains)
    assert gains[-1] > 0.05
    assert adapted.maps is not None and adapted.maps[1] > adapted.maps[0]
    assert adapted.after.micro_f1 > adapted.before.micro_f1
    # The folds' figures are close to the truth on images that did not teach.
    scores = raw_scores(unseen, adapted.artifact.classes, GEOMETRY)
    calibration = adapted.artifact.calibration
    tags = calibration.scores(scores) >= calibration.thresholds
    f1 = 200 * (tags & truth).sum() / (tags.sum() + truth.sum())
    assert adapted.after.micro_f1 == pytest.approx(f1, abs=5)


def test_a_label_without_an_example_stays_and_unknown_labels_say_nothing() -> None:
    artifact, features, labels = world(30, seed=1)
    ignored = known(labels)
    ignored[:, 2] = True  # nothing is known of it
    ignored[::3, 1] = True
    labels[:, 3] = False  # none shows it
    adapted = adapt_to_features(artifact, features, labels, ignored).artifact
    for branch in ("pooled", "local"):
        after, before = (getattr(one.classes, branch) for one in (adapted, artifact))
        assert torch.equal(after[2:4], before[2:4])
        assert not torch.equal(after[:2], before[:2])
    other = np.where(ignored, ~labels, labels)
    again = adapt_to_features(artifact, features, other, ignored).artifact
    assert torch.equal(again.classes.pooled, adapted.classes.pooled)
    np.testing.assert_array_equal(again.calibration.thresholds, adapted.calibration.thresholds)


def test_who_only_adds_what_is_missing_does_not_teach_that_all_shows_all() -> None:
    artifact, unseen, truth = world(600, seed=100)
    _, features, labels = world(40, seed=5)
    adapted = adapt_to_features(artifact, features, labels, ~labels)  # only "yes" is known
    assert "% of all pairs of image and label are known" in adapted.lines[1]
    calibration = adapted.artifact.calibration
    scores = calibration.scores(raw_scores(unseen, adapted.artifact.classes, GEOMETRY))
    tags = (scores >= calibration.thresholds).sum()
    assert truth.sum() / 2 < tags < 2 * truth.sum()
    assert mean_ap(adapted.artifact, unseen, truth) > mean_ap(artifact, unseen, truth)


def test_one_example_of_one_label_is_enough() -> None:
    artifact, features, labels = world(6, seed=3)
    labels[:] = False
    labels[2, 1] = True
    adapted = adapt_to_features(artifact, features, labels, known(labels)).artifact
    stays = torch.arange(CLASSES) != 1
    assert torch.equal(adapted.classes.pooled[stays], artifact.classes.pooled[stays])


def test_a_category_moves_the_same_whatever_others_there_are() -> None:
    draw = torch.Generator().manual_seed(8)
    gradients = [torch.randn(30, CLASSES, DIM, generator=draw) * scale for scale in (1, 9)]
    logits, values, weights = torch.rand(3, 30, CLASSES, generator=draw)
    together = fitted_moves(gradients, logits, values, weights)
    alone = fitted_moves(
        [g[:, 2:3] for g in gradients], logits[:, 2:3], values[:, 2:3], weights[:, 2:3]
    )
    for one, all_of in zip(alone, together, strict=True):
        torch.testing.assert_close(one[0], all_of[2], atol=2e-3, rtol=0.01)


def test_gradients_are_those_of_the_scores() -> None:
    artifact, features, _ = world(3, seed=2)
    block = torch.tensor([1, 4])
    gradients = score_gradients(features, artifact.classes, GEOMETRY, block)
    before = raw_scores(features, artifact.classes, GEOMETRY)
    step = 1e-3 * torch.randn(2, CLASSES, DIM, generator=torch.Generator().manual_seed(0))
    moved = ClassFeatures(artifact.classes.pooled + step[0], artifact.classes.local + step[1])
    expected = (raw_scores(features, moved, GEOMETRY) - before)[:, block]
    found = sum((g * s[block]).sum(-1) for g, s in zip(gradients, step, strict=True))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_moves_minimise_the_documented_sum() -> None:
    draw = np.random.default_rng(3)
    gradients = [draw.normal(size=(20, 2, 3)), 5 * draw.normal(size=(20, 2, 3))]
    logits, labels = draw.normal(size=(20, 2)), draw.random((20, 2))
    counts = draw.random((20, 2))
    found = fitted_moves(
        *([torch.from_numpy(g).float() for g in gradients],),
        *(torch.from_numpy(v).float() for v in (logits, labels, counts)),
    )
    z, stretches = [], []
    for branch in gradients:
        centred = branch - branch.mean(0)
        stretches.append(1.5 / np.sqrt((centred**2).sum(-1).mean(0))[:, None])
        z.append(stretches[-1] * centred)
    for c in range(2):

        def total(u: np.ndarray, c: int = c) -> float:
            at = logits[:, c] + z[0][:, c] @ u[:3] + z[1][:, c] @ u[3:6] + u[6]
            losses = np.logaddexp(0, at) - labels[:, c] * at
            return float((losses * counts[:, c]).sum() + (u**2).sum() / 2)

        best = minimize(total, np.zeros(7)).x
        for branch in range(2):
            expected = stretches[branch][c] * best[3 * branch : 3 * branch + 3]
            np.testing.assert_allclose(found[branch][c], expected, atol=2e-3)


def test_features_stay_only_where_moving_clearly_harms() -> None:
    draw = np.random.default_rng(4)
    labels = draw.random((60, 8)) < 0.3
    good = np.where(labels, 0.8, 0.2)
    worse = np.clip(good + np.where(labels, -0.3, 0.3) * draw.random((60, 8)), 0, 1)
    all_known = Evidence(labels.astype(float), np.ones(labels.shape))
    assert clearly_worse(good, worse, all_known)
    assert not clearly_worse(worse, good, all_known)
    assert not clearly_worse(good, good, all_known)
    assert not clearly_worse(good, worse, all_known._replace(weights=np.zeros(labels.shape)))


@pytest.fixture
def adapt(
    artifact: Path,
    tmp_path: Path,
    lasting_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Done]:
    """Calls `datafree adapt`, in this process and an empty folder."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("DATAFREE_CACHE", str(lasting_cache))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_datafree(monkeypatch, capsys, "adapt", *arguments)


def test_labelled_photos_make_a_better_artifact(
    adapt: Callable[..., Done], artifact: Path, lasting_cache: Path, stamps: Path
) -> None:
    compose_scenes(stamps, SceneSettings(images=24, size=160), Path("photos"))
    files = sorted(Path("photos").rglob("*.[jp][pn]g"))
    raw = Tagger.load(artifact, "cpu", lasting_cache).raw_scores(files)
    labels = raw > np.quantile(raw, 0.7, axis=0)
    rows = [
        f"{file.relative_to('photos')},{';'.join(np.array(NAMES)[row])}"
        for file, row in zip(files, labels, strict=True)
    ]
    Path("photos/broken.jpg").write_bytes(b"no image")
    Path("photos/labels.csv").write_text("\n".join([*rows, f"broken.jpg,{NAMES[0]}"]) + "\n")
    for out in ("better", "same"):
        done = adapt(artifact, "--root", "photos", "--out", out)
        assert done.code == 0, done.err
    assert "photos/broken.jpg: cannot be read" in done.err
    assert "On images that did not teach it (five folds), before → after: mAP" in done.err
    better = Artifact.load("better")
    assert better.version == Artifact.load("same").version  # the same bytes
    assert better.learned is not None
    assert (better.learned.by, better.learned.parent) == ("adapt", Artifact.load(artifact).version)
    assert len(better.learned.images) == 24
    tags = Tagger.load("better", "cpu", lasting_cache).tag(files)
    given = np.array([[name in {tag.name for tag in one} for name in NAMES] for one in tags])
    assert (given == labels).mean() > 0.9
    done = adapt("better", "--root", "photos", "--out", "twice")
    assert (done.code, "would count twice" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "nowhere"], "nowhere"),
        (["--root", "photos", "--dataset", "images"], "--dataset: Input should be"),
        (["--root", "photos"], "at least 5 readable images with labels are required (got 1)"),
    ],
)
def test_mistakes_are_reported(
    adapt: Callable[..., Done],
    artifact: Path,
    stamps: Path,
    arguments: list[str],
    message: str,
) -> None:
    compose_scenes(stamps, SceneSettings(images=1, size=160), Path("photos"))
    [file] = Path("photos").rglob("*.[jp][pn]g")
    Path("photos/labels.csv").write_text(f"{file.relative_to('photos')},{NAMES[0]}\n")
    done = adapt(artifact, *arguments, "--out", "better")
    assert done.code == 2
    assert message in done.err
    assert not Path("better").exists()


def test_learned_survives_saving_and_an_artifact_without_it_has_no_such_field(
    artifact: Path, tmp_path: Path
) -> None:
    loaded = Artifact.load(artifact)
    loaded.save(tmp_path / "copy")
    assert Artifact.load(tmp_path / "copy").learned is None
    assert Artifact.load(tmp_path / "copy").version == loaded.version
    assert "learned" not in (tmp_path / "copy" / "artifact.json").read_text()
