"""The artifact: what tuning leaves for those who tag with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save

from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import VLM, Geometry, VLMSettings
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.evaluation.baselines import ClassFeatures
from prompt_tuning.storage import MANIFEST, publishing
from prompt_tuning.tagging.artifact import Artifact
from prompt_tuning.tagging.calibration import Calibration
from prompt_tuning.tagging.new_labels import TunedTokens
from prompt_tuning.tagging.tagger import Tagger

CATEGORIES = CategoryList(
    categories=(
        Category(name="dog", synonyms=("hound",), kinds=("chihuahua", "tosa inu")),
        Category(name="café"),
        Category(name="hot air balloon"),
    )
)
TREE = {"living": {"animals": ["dog"]}, "things": {"all": ["café", "hot air balloon"]}}
# Sigmoids that differ, with numbers that have no short decimal form.
CALIBRATION = Calibration(
    slopes=np.array([1.0, 2.0, 3.0]) / 7,
    offsets=np.array([-1.0, 0.0, 1.0]) / 7,
    thresholds=np.array([0.1, 0.2, 0.3]),
    shared=(0.5, -0.5, 0.25),
)


@pytest.fixture(scope="module")
def artifact(embedded_vlm: VLM) -> Artifact:
    generator = torch.Generator().manual_seed(0)
    pooled, local = F.normalize(torch.randn(2, 3, embedded_vlm.dim, generator=generator), dim=-1)
    geometry = embedded_vlm.geometry.model_copy(update={"scale": 3.0, "global_weight": 0.25})
    classes = ClassFeatures(pooled, local)
    return Artifact(
        CATEGORIES,
        TREE,
        classes,
        tokens(embedded_vlm),
        geometry,
        "mean",
        CALIBRATION,
        embedded_vlm.settings,
        embedded_vlm.identity,
    )


def tokens(vlm: VLM) -> TunedTokens:
    """Of the global branch 2 shared tokens and one of each category; none of the local branch."""
    table = vlm.initial_context(5) + 0.1 * torch.arange(5.0)[:, None]
    rows = torch.tensor([[0, 1, 2], [0, 1, 3], [0, 1, 4]])
    return TunedTokens({"global.table": table, "global.rows": rows}, {"global": 0.25, "local": 0.0})


@pytest.fixture
def folder(artifact: Artifact, tmp_path: Path) -> Path:
    artifact.save(tmp_path / "artifact")
    return tmp_path / "artifact"


def test_an_artifact_reads_back_as_saved(artifact: Artifact, folder: Path) -> None:
    read = Artifact.load(folder)
    for name in ("categories", "tree", "geometry", "fusion", "vlm_settings", "vlm"):
        assert getattr(read, name) == getattr(artifact, name)
    assert torch.equal(read.classes.pooled, artifact.classes.pooled)
    assert torch.equal(read.classes.local, artifact.classes.local)
    assert read.calibration.to_json() == artifact.calibration.to_json()
    assert read.tokens.anchor_weights == artifact.tokens.anchor_weights
    assert read.tokens.tensors.keys() == artifact.tokens.tensors.keys()
    for name, tensor in artifact.tokens.tensors.items():
        assert torch.equal(read.tokens.tensors[name], tensor)
    assert Artifact.load(str(folder)).vlm == artifact.vlm


def test_saving_again_replaces_what_was_there(artifact: Artifact, folder: Path) -> None:
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    artifact.save(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first
    classes = ClassFeatures(artifact.classes.local, artifact.classes.pooled)
    replace(artifact, classes=classes, fusion="softmax").save(folder)
    assert torch.equal(Artifact.load(folder).classes.pooled, artifact.classes.local)
    assert Artifact.load(folder).fusion == "softmax"


def test_no_file_is_a_pickle(folder: Path) -> None:
    files = sorted(folder.rglob("*"))
    assert [file.name for file in files] == [
        "artifact.json",
        "class_features.safetensors",
        "manifest.json",
        "tokens.safetensors",
    ]
    for file in files:
        assert file.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")
    assert set(load_file(folder / "class_features.safetensors")) == {"global", "local"}


def test_another_model_is_refused_by_what_differs(
    artifact: Artifact, embedded_settings: VLMSettings, lasting_cache: Path
) -> None:
    settings = embedded_settings.model_copy(update={"resolution": 192})
    other = load_vlm(settings, cache=lasting_cache)
    with pytest.raises(ValueError, match=r"lite0\+minilm at 224; .* differs in resolution$"):
        artifact.check_vlm(other)
    with pytest.raises(ValueError, match="differs in resolution"):
        Tagger(artifact, other)


@pytest.mark.parametrize(
    "file", ["artifact.json", "class_features.safetensors", "manifest.json", "tokens.safetensors"]
)
def test_an_altered_file_is_refused(folder: Path, file: str) -> None:
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"the artifact is damaged: .*altered"):
        Artifact.load(folder)


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no artifact there"):
        Artifact.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no artifact there"):
        Artifact.load(tmp_path)
    with publishing(tmp_path / "other") as staging:
        (staging / "data.txt").write_text("published, but by another stage")
    with pytest.raises(ValueError, match="no artifact"):
        Artifact.load(tmp_path / "other")


def test_what_others_put_beside_its_files_changes_nothing(artifact: Artifact, folder: Path) -> None:
    """What git, a hub and a file manager leave, and a card that somebody edited."""
    with publishing(folder, replace=True) as staging:  # as `export --hf` does, with its card
        for file in ("artifact.json", "class_features.safetensors", "tokens.safetensors"):
            (staging / file).write_bytes((folder / file).read_bytes())
        (staging / "README.md").write_text("the card")
    (folder / "README.md").write_text("the card, with a licence")
    for added in (".gitattributes", ".DS_Store", ".cache/huggingface/x.lock", ".git/HEAD"):
        (folder / added).parent.mkdir(parents=True, exist_ok=True)
        (folder / added).write_text("")
    assert Artifact.load(folder).vlm == artifact.vlm
    # Nor does another artifact that is saved in its place lose them.
    replace(artifact, fusion="softmax").save(folder)
    assert Artifact.load(folder).fusion == "softmax"
    assert (folder / ".git/HEAD").exists() and (folder / ".cache/huggingface/x.lock").exists()


def test_a_folder_of_something_else_is_not_replaced(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    for target in (tmp_path / "photos", str(tmp_path / "photos"), tmp_path / "photos" / "a.jpg"):
        with pytest.raises(FileExistsError, match="holds something else; name a new folder"):
            artifact.save(target)
    assert (tmp_path / "photos" / "a.jpg").read_text() == "mine"
    artifact.save(str(tmp_path / "new"))
    assert Artifact.load(tmp_path / "new").vlm == artifact.vlm


def test_the_folder_of_a_run_names_its_artifact(artifact: Artifact, tmp_path: Path) -> None:
    artifact.save(tmp_path / "run" / "artifact")
    with pytest.raises(ValueError, match=r"run: no artifact there .*; did you mean .*run/artifact"):
        Artifact.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: d.pop("geometry"), "geometry is missing"),
        (lambda d: d["calibration"].pop("source"), "calibration.source is missing"),
        (lambda d: d["geometry"].update(scale=float("nan")), "geometry.scale .*finite number"),
        (
            lambda d: d["calibration"]["thresholds"].__setitem__(1, float("nan")),
            "calibration.thresholds.1 .*finite number",
        ),
        (lambda d: d["calibration"]["slopes"].pop(), "calibration.slopes must have a number"),
        (lambda d: d["handcrafted"].pop("local"), "handcrafted must be of global and local"),
        (lambda d: d["hierarchy"].clear(), "hierarchy must name each of categories once"),
        (lambda d: d.update(fusion="max"), "fusion .*'mean' or 'softmax'"),
        (lambda d: d.update(categories="dog"), "categories "),
        (lambda d: d.pop("version"), "must be JSON with a version"),
    ],
)
def test_a_description_edited_by_hand_is_refused_by_its_key(
    folder: Path, edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    described = json.loads((folder / "artifact.json").read_text("utf-8"))
    edit(described)
    republish(folder, "artifact.json", json.dumps(described).encode())
    with pytest.raises(ValueError, match=words) as caught:
        Artifact.load(folder)
    assert str(caught.value).startswith(f"{folder}/artifact.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"global": torch.zeros(3, 384)}, "local is missing"),
        ({"global": torch.zeros(2, 384), "local": torch.zeros(3, 384)}, "global must be 3 × 384"),
        (
            {"global": torch.zeros(3, 384), "local": torch.full((3, 384), torch.nan)},
            "local must be finite numbers",
        ),
    ],
)
def test_class_features_that_do_not_fit_are_refused_by_their_name(
    folder: Path, tensors: dict[str, torch.Tensor], words: str
) -> None:
    republish(folder, "class_features.safetensors", save(tensors))
    with pytest.raises(ValueError, match=rf"class_features\.safetensors: {words}") as caught:
        Artifact.load(folder)
    assert "\n" not in str(caught.value)


def test_a_file_that_git_lfs_has_not_fetched_is_named(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9"
    (folder / "class_features.safetensors").write_text(pointer)
    with pytest.raises(ValueError, match=r"class_features.safetensors was altered; .*git lfs pull"):
        Artifact.load(folder)


def republish(folder: Path, file: str, content: bytes) -> None:
    """With another content of a file, and a manifest that says so."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}
    with publishing(folder, replace=True) as staging:
        for name, old in files.items():
            (staging / name).write_bytes(content if name == file else old)


def test_an_artifact_of_another_version_is_refused(folder: Path) -> None:
    description = (folder / "artifact.json").read_text("utf-8")
    with publishing(folder, replace=True) as staging:
        (staging / "artifact.json").write_text(
            description.replace('"version": 2', '"version": 1'), "utf-8"
        )
    with pytest.raises(ValueError, match=r"artifact of version 1, .* run its config again"):
        Artifact.load(folder)


def test_an_artifact_brings_its_own_geometry(folder: Path, embedded_vlm: VLM) -> None:
    geometry = Artifact.load(folder).geometry
    assert geometry == Geometry(
        scale=3.0, aggregation="log_mean_exp", local_temperature=30.0, global_weight=0.25
    )
    assert geometry != embedded_vlm.geometry


def test_labels_are_added_with_the_tokens_of_their_nearest_group(
    artifact: Artifact, tmp_path: Path, embedded_vlm: VLM
) -> None:
    more = artifact.adding(["wolf", "airship"], embedded_vlm)
    assert more.categories.names == ("dog", "café", "hot air balloon", "wolf", "airship")
    assert more.tree == {
        "living": {"animals": ["dog", "wolf"]},
        "things": {"all": ["café", "hot air balloon", "airship"]},
    }
    assert torch.equal(more.classes.pooled[:3], artifact.classes.pooled)
    # wolf: what dog has; airship: the shared tokens and the mean of café's and balloon's.
    before, after = artifact.tokens.context("global"), more.tokens.context("global")
    assert before is not None
    assert after is not None
    assert torch.equal(after[:4], before[[0, 1, 2, 0]])
    torch.testing.assert_close(after[4], before[1:].mean(0))
    anchor = embedded_vlm.encode_text(["a photo of a wolf.", "a photo of a airship."])
    prompted = embedded_vlm.encode_prompts(after[3:], ["wolf", "airship"])
    tuned = F.normalize(prompted + anchor, dim=-1)
    expected = F.normalize(0.75 * tuned + 0.25 * anchor, dim=-1)
    torch.testing.assert_close(more.classes.pooled[3:], expected)
    # The local branch has no tokens: plain zero-shot.
    torch.testing.assert_close(more.classes.local[3:], anchor)
    assert more.calibration.slopes.tolist() == [*CALIBRATION.slopes.tolist(), 0.5, 0.5]
    assert more.calibration.thresholds.tolist() == [0.1, 0.2, 0.3, 0.25, 0.25]
    more.save(tmp_path / "more")
    assert Artifact.load(tmp_path / "more").adding(["car"], embedded_vlm).categories.names[-2:] == (
        "airship",
        "car",
    )


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([], "no label is given"),
        ([" dog"], "label ' dog': .*not a plain name"),
        (["car", "Car"], "label 'car' is given twice"),
        (["Dog"], "'Dog' is listed twice"),
        (["hound"], "'hound' stands for two categories: dog and hound"),
    ],
)
def test_labels_that_cannot_be_added(
    artifact: Artifact, embedded_vlm: VLM, labels: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        artifact.adding(labels, embedded_vlm)
    assert "\n" not in str(caught.value)
