"""The tagger end to end: tuned on sentences, on composed scenes, with the real model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_artifact import NAMES, QUICK, SENTENCES

from prompt_tuning import Artifact, Tag, Tagger, tune
from prompt_tuning.backbones.base import VLM
from prompt_tuning.datasets.scenes import SceneSettings, compose_scenes
from prompt_tuning.images import open_image
from prompt_tuning.tuning.prompts import BranchSettings, PromptSettings
from prompt_tuning.tuning.scoring import branch_scores, fuse


@pytest.fixture(scope="module")
def tagger(artifact: Path, lasting_cache: Path) -> Tagger:
    return Tagger.load(artifact, device="cpu", cache=lasting_cache)


@pytest.fixture(scope="module")
def files(stamps: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """More scenes than are encoded at once."""
    scenes = tmp_path_factory.mktemp("scenes")
    compose_scenes(stamps, SceneSettings(images=18, size=160), scenes)
    return sorted(scenes.rglob("*.jpg")) or sorted(scenes.rglob("*.png"))


def test_scores_are_calibrated_raw_scores_in_the_order_of_the_images(
    tagger: Tagger, artifact: Path, files: list[Path], embedded_vlm: VLM
) -> None:
    assert tagger.names == tuple(NAMES)
    scores = tagger.scores(files)
    assert scores.shape == (len(files), 4)
    assert ((scores > 0) & (scores < 1)).all()
    loaded = Artifact.load(artifact)
    np.testing.assert_array_equal(tagger.thresholds, loaded.calibration.thresholds)
    for row in (0, len(files) - 1):
        pixels = embedded_vlm.preprocess(open_image(files[row]))[None]
        features = embedded_vlm.encode_image(pixels)
        branches = branch_scores(
            features, loaded.classes.pooled, loaded.classes.local, loaded.geometry
        )
        raw = fuse(*branches, loaded.geometry).numpy()
        np.testing.assert_allclose(scores[row], loaded.calibration.scores(raw)[0], atol=1e-4)
    assert tagger.scores([]).shape == (0, 4)
    assert tagger.tag([]) == []


def test_a_softmax_in_the_fusion_changes_no_calibrated_score(
    tagger: Tagger, artifact: Path, files: list[Path], embedded_vlm: VLM
) -> None:
    loaded = replace(Artifact.load(artifact), fusion="softmax")
    competing = Tagger(loaded, embedded_vlm).scores(files[:2])
    np.testing.assert_allclose(competing, tagger.scores(files[:2]), atol=1e-6)


def test_paths_text_and_images_are_all_taken(tagger: Tagger, files: list[Path]) -> None:
    expected = tagger.scores(files[:3])
    mixed = tagger.scores([files[0], str(files[1]), Image.open(files[2])])
    np.testing.assert_allclose(mixed, expected, atol=1e-6)


def test_a_file_that_is_no_image_is_named(tagger: Tagger, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"notes\.jpg: cannot be read as an image"):
        tagger.tag([tmp_path / "notes.jpg"])


def test_tags_reach_their_thresholds_and_come_best_first(tagger: Tagger, files: list[Path]) -> None:
    scores = tagger.scores(files)
    tags = tagger.tag(files)
    for found, row in zip(tags, scores, strict=True):
        reached = np.flatnonzero(row >= tagger.thresholds)
        assert {tag.name for tag in found} == {NAMES[c] for c in reached}
    every = tagger.tag(files[:5], threshold=0)
    for found, row in zip(every, scores, strict=False):
        order = np.argsort(-row, kind="stable")
        assert [tag.name for tag in found] == [NAMES[c] for c in order]
        np.testing.assert_allclose([tag.score for tag in found], row[order], atol=1e-6)
    assert tagger.tag(files[:5], threshold=0, top=2) == [found[:2] for found in every]
    assert tagger.tag(files, top=1) == [found[:1] for found in tags]
    assert tagger.tag(files[:5], threshold=1.01) == [[]] * 5
    assert isinstance(every[0][0], Tag)


def test_threads_get_what_one_alone_gets(tagger: Tagger, files: list[Path]) -> None:
    expected = tagger.scores(files[:8])
    others = tagger.with_labels(["car", "penguin"])
    expected_others = others.scores(files[:8])

    def job(i: int) -> np.ndarray:
        if i % 3 == 0:
            return tagger.with_labels(["car", "penguin"]).scores(files[i : i + 1])
        return tagger.scores(files[i : i + 1])

    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            for i, scores in enumerate(pool.map(job, range(8))):
                reference = expected_others if i % 3 == 0 else expected
                np.testing.assert_allclose(scores, reference[i : i + 1], atol=1e-5)


def test_heat_maps_share_out_the_local_score(
    tagger: Tagger, artifact: Path, files: list[Path], embedded_vlm: VLM
) -> None:
    maps = tagger.heat_maps(files[0])
    assert maps.shape == (4, 7, 7)
    np.testing.assert_allclose(maps.sum((1, 2)), 1, atol=1e-5)
    # Shares are the gradient of the local score by the regions' cosines.
    loaded = Artifact.load(artifact)
    pixels = embedded_vlm.preprocess(open_image(files[0]))[None]
    regions = embedded_vlm.encode_image(pixels).regions
    cosines = (regions @ loaded.classes.local.T).requires_grad_()
    t = loaded.geometry.local_temperature
    ((cosines * t).logsumexp(0) / t).sum().backward()
    assert cosines.grad is not None
    np.testing.assert_allclose(maps.reshape(4, -1), cosines.grad.T, atol=1e-5)


def test_heat_lies_where_the_thing_is(tagger: Tagger, stamps: Path) -> None:
    canvas = Image.new("RGB", (320, 320), (120, 155, 85))
    (stamp, *_) = sorted(stamps.rglob("*elephant*.png"))
    thing = Image.open(stamp).convert("RGBA").resize((130, 130))
    canvas.paste(thing, (180, 170), thing)
    heat = tagger.heat_maps(canvas)[NAMES.index("elephant")]
    rows, columns = np.unravel_index(heat.argmax(), heat.shape)
    assert rows >= 3
    assert columns >= 3


def test_other_labels_without_tuning(
    tagger: Tagger, artifact: Path, files: list[Path], embedded_vlm: VLM
) -> None:
    other = tagger.with_labels(["car", "penguin", "scissors"])
    assert other.names == ("car", "penguin", "scissors")
    scores = other.scores(files[:4])
    # A category that was tuned keeps what it has, and the tagger it comes from stays as it is.
    np.testing.assert_allclose(scores[:, 1], tagger.scores(files[:4])[:, 3], atol=1e-6)
    assert tagger.names == tuple(NAMES)
    assert other.thresholds[1] == tagger.thresholds[3]
    # It is what adding them to the artifact gives, and one label alone will do.
    more = Tagger(Artifact.load(artifact).adding(["car", "scissors"], embedded_vlm), embedded_vlm)
    np.testing.assert_allclose(more.scores(files[:4])[:, 4:], scores[:, [0, 2]], atol=1e-5)
    alone = other.with_labels(["scissors"])
    np.testing.assert_allclose(alone.scores(files[:4])[:, 0], scores[:, 2], atol=1e-6)
    assert {tag.name for found in alone.tag(files, threshold=0) for tag in found} == {"scissors"}
    with pytest.raises(ValueError, match="label 'car' is given twice"):
        tagger.with_labels(["car", "car"])


def test_an_artifact_of_free_vectors_prompts_new_labels_by_hand(embedded_vlm: VLM) -> None:
    vectors = BranchSettings(learn="vectors")
    settings = PromptSettings(global_branch=vectors, local_branch=vectors)
    artifact = tune(embedded_vlm, NAMES, SENTENCES, prompts=settings, tuning=QUICK, held_out=0.3)
    assert artifact.tokens.tensors == {}
    more = artifact.adding(["car"], embedded_vlm)
    zero_shot = embedded_vlm.encode_text(["a photo of a car."])
    torch.testing.assert_close(more.classes.pooled[4:], zero_shot)
    torch.testing.assert_close(more.classes.local[4:], zero_shot)


@pytest.mark.parametrize("learn", ["residuals", "tokens+residuals"])
def test_new_labels_get_the_mean_of_all_residuals(
    embedded_vlm: VLM, tmp_path: Path, learn: Literal["residuals", "tokens+residuals"]
) -> None:
    branch = BranchSettings(learn=learn, shared=1, coarse=1, fine=1, category=1, anchor_weight=0.0)
    settings = PromptSettings(global_branch=branch, local_branch=branch)
    tune(embedded_vlm, NAMES, SENTENCES, prompts=settings, tuning=QUICK, held_out=0.3).save(
        tmp_path / "artifact"
    )
    artifact = Artifact.load(tmp_path / "artifact")
    more = artifact.adding(["car"], embedded_vlm)
    anchor = embedded_vlm.encode_text([f"a photo of a {name}." for name in [*NAMES, "car"]])
    for name, tuned in (("global", more.classes.pooled), ("local", more.classes.local)):
        residuals, context = more.tokens.residuals(name), more.tokens.context(name)
        assert residuals is not None
        assert (residuals.norm(dim=-1) > 0.01).all()
        torch.testing.assert_close(residuals[4], residuals[:4].mean(0))
        prompts = anchor
        if context is not None:
            prompts = embedded_vlm.encode_prompts(context, [*NAMES, "car"])
        torch.testing.assert_close(tuned, F.normalize(prompts + residuals + anchor, dim=-1))


def test_what_cannot_be_loaded_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no artifact") as caught:
        Tagger.load(tmp_path)
    assert "\n" not in str(caught.value)
