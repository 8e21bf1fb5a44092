"""The artifact: what tuning leaves for those who tag with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from prompt_tuning.artifact import Artifact
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.evaluation import ClassFeatures, arm_scores
from prompt_tuning.store import publishing
from prompt_tuning.vlm import VLM, Geometry, VLMSettings, load_vlm

CATEGORIES = CategoryList(
    categories=(
        Category(name="dog", synonyms=("hound",), kinds=("chihuahua", "tosa inu")),
        Category(name="café"),
        Category(name="hot air balloon"),
    )
)
TREE = {"living": {"animals": ["dog"]}, "things": {"all": ["café", "hot air balloon"]}}


@pytest.fixture(scope="module")
def artifact(embedded_vlm: VLM) -> Artifact:
    generator = torch.Generator().manual_seed(0)
    pooled, local = F.normalize(torch.randn(2, 3, embedded_vlm.dim, generator=generator), dim=-1)
    geometry = embedded_vlm.geometry.model_copy(update={"scale": 3.0, "global_weight": 0.25})
    classes = ClassFeatures(pooled, local)
    return Artifact(CATEGORIES, TREE, classes, geometry, "mean", embedded_vlm.identity)


@pytest.fixture
def folder(artifact: Artifact, tmp_path: Path) -> Path:
    artifact.save(tmp_path / "artifact")
    return tmp_path / "artifact"


def pixels(vlm: VLM, batch: int = 3) -> torch.Tensor:
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(batch)]
    return torch.stack([vlm.preprocess(Image.fromarray(image)) for image in images])


def test_an_artifact_reads_back_as_saved(artifact: Artifact, folder: Path) -> None:
    read = Artifact.load(folder)
    for name in ("categories", "tree", "geometry", "fusion", "vlm"):
        assert getattr(read, name) == getattr(artifact, name)
    assert torch.equal(read.classes.pooled, artifact.classes.pooled)
    assert torch.equal(read.classes.local, artifact.classes.local)
    assert Artifact.load(str(folder)).vlm == artifact.vlm


def test_saving_again_replaces_what_was_there(artifact: Artifact, folder: Path) -> None:
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    artifact.save(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first
    classes = ClassFeatures(artifact.classes.local, artifact.classes.pooled)
    Artifact(CATEGORIES, TREE, classes, artifact.geometry, "softmax", artifact.vlm).save(folder)
    assert torch.equal(Artifact.load(folder).classes.pooled, artifact.classes.local)
    assert Artifact.load(folder).fusion == "softmax"


def test_no_file_is_a_pickle(folder: Path) -> None:
    files = sorted(folder.rglob("*"))
    assert [file.name for file in files] == [
        "artifact.json",
        "class_features.safetensors",
        "manifest.json",
    ]
    for file in files:
        assert file.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")
    assert set(load_file(folder / "class_features.safetensors")) == {"global", "local"}


@pytest.mark.parametrize("fusion", ["mean", "softmax"])
def test_scores_are_those_of_the_evaluation(
    embedded_vlm: VLM, artifact: Artifact, folder: Path, fusion: str
) -> None:
    read = Artifact.load(folder)
    read = Artifact(read.categories, read.tree, read.classes, read.geometry, fusion, read.vlm)
    batch = pixels(embedded_vlm)
    expected = arm_scores(
        embedded_vlm.encode_image(batch), artifact.classes, artifact.geometry, fusion
    )
    assert expected["fused"].shape == (3, 3)
    np.testing.assert_allclose(
        read.scores(embedded_vlm, batch).numpy(), expected["fused"], atol=1e-6
    )


def test_another_model_is_refused_by_what_differs(
    artifact: Artifact, embedded_settings: VLMSettings, lasting_cache: Path
) -> None:
    settings = embedded_settings.model_copy(update={"resolution": 192})
    other = load_vlm(settings, cache=lasting_cache)
    with pytest.raises(ValueError, match=r"lite0\+minilm at 224; .* differs in resolution$"):
        artifact.scores(other, pixels(other))


@pytest.mark.parametrize("file", ["artifact.json", "class_features.safetensors", "manifest.json"])
def test_an_altered_file_is_refused(folder: Path, file: str) -> None:
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match="no artifact, or one that was altered"):
        Artifact.load(folder)


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no artifact, or one that was altered"):
        Artifact.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no artifact, or one that was altered"):
        Artifact.load(tmp_path)
    with publishing(tmp_path / "other") as staging:
        (staging / "data.txt").write_text("published, but by another stage")
    with pytest.raises(ValueError, match="no artifact"):
        Artifact.load(tmp_path / "other")


def test_an_artifact_of_another_version_is_refused(folder: Path) -> None:
    description = (folder / "artifact.json").read_text("utf-8")
    with publishing(folder, replace=True) as staging:
        (staging / "artifact.json").write_text(
            description.replace('"version": 1', '"version": 99'), "utf-8"
        )
    with pytest.raises(ValueError, match="artifact of version 99"):
        Artifact.load(folder)


def test_an_artifact_brings_its_own_geometry(folder: Path, embedded_vlm: VLM) -> None:
    geometry = Artifact.load(folder).geometry
    assert geometry == Geometry(
        scale=3.0, aggregation="log_mean_exp", local_temperature=30.0, global_weight=0.25
    )
    assert geometry != embedded_vlm.geometry
