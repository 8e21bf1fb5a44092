"""`datafree export` from the command line, and the model card against the run's own figures."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import run_datafree
from PIL import Image
from test_onnx_export import artifact_for, needs_onnx, tiny_clip

from orchestrator.pages.metrics_summary import caption_notes
from prompt_tuning.backbones.base import VLM
from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.evaluation.baselines import UNTUNED
from prompt_tuning.evaluation.compare import compare_methods
from prompt_tuning.evaluation.method_scores import SCORE_KINDS
from prompt_tuning.evaluation.selection import Selection
from prompt_tuning.knowledge.caption_coverage import CaptionCoverage
from prompt_tuning.tagging.artifact import Artifact, Learned
from prompt_tuning.tagging.tagger import Tagger

Call = Callable[..., str]


@pytest.fixture
def datafree(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls the command line in this process: what it printed, or, with `refused`, its error."""
    monkeypatch.delenv("DATAFREE_CACHE", raising=False)

    def call(*arguments: object, refused: bool = False) -> str:
        code, out, err = run_datafree(monkeypatch, capsys, *arguments)
        assert code == (2 if refused else 0), (out, err)
        message = err.partition("error: ")[2]
        assert not refused or message.count("\n") == 1, err
        return message if refused else out

    return call


@pytest.fixture
def alone(embedded_vlm: VLM, tmp_path: Path) -> Path:
    """An artifact that lies in no run."""
    folder = tmp_path / "alone" / "artifact"
    artifact_for(embedded_vlm).save(folder)
    return folder


def write_run(folder: Path, vlm: VLM, images: int = 40) -> dict[str, Any]:
    """As a run leaves it, as far as a card needs it; returns the metrics."""
    artifact = artifact_for(vlm)
    artifact.save(folder / "artifact")
    drawn = np.random.default_rng(0)
    labels = drawn.random((40, 3)) < 0.4

    def some_scores() -> dict[str, np.ndarray]:
        return {branch: drawn.random((40, 3)) + labels for branch in SCORE_KINDS}

    scores = {method: [some_scores()] for method in UNTUNED} | {
        "tuned": [some_scores(), some_scores()]
    }
    metrics = {
        "dataset": "folder" if images else "held_out_captions",
        "images": images,
        "protocol": {"selected_on": "text: held-out captions", "seeds": "3, 7"},
        **compare_methods(scores, labels, artifact.categories),
    }
    (folder / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    selection = {"artifact_seed": 7, **asdict(Selection())}
    (folder / "selection.json").write_text(json.dumps(selection), "utf-8")
    config = {
        "name": folder.name,
        "categories": list(artifact.categories.names),
        "knowledge": {"llm": {"model": "some/model-1B"}},
        "captions": {"templates": True},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    return metrics


def front_matter(card: str) -> dict[str, Any]:
    _, matter, _ = card.split("---\n", 2)
    return yaml.safe_load(matter)


def test_a_folder_with_a_card_loads_as_the_artifact_does(
    alone: Path, tmp_path: Path, datafree: Call, embedded_vlm: VLM, lasting_cache: Path
) -> None:
    target = tmp_path / "exported"
    datafree("export", alone, "--hf", target)
    assert {file.name for file in target.iterdir()} == {
        *(file.name for file in alone.iterdir()),
        "README.md",
        ".gitattributes",
    }
    image = Image.effect_noise((60, 50), 90).convert("RGB")
    loaded = Tagger.load(target, device="cpu", cache=lasting_cache)
    expected = Tagger(Artifact.load(alone), embedded_vlm).scores([image])
    np.testing.assert_allclose(loaded.scores([image]), expected, atol=1e-6)
    card = (target / "README.md").read_text("utf-8")
    matter = front_matter(card)
    assert matter["license"]
    assert matter["library_name"] == "datafree"
    assert "multi-label-image-classification" in matter["tags"]
    for text in (
        "is not CLIP",
        "Not measured",
        "tuned without a photo",
        "dog\ncafé\nhot air balloon",
    ):
        assert text in card
    # It travels through git and hubs, which add what is theirs.
    (target / ".git").mkdir()
    (target / ".git" / "HEAD").write_text("ref: refs/heads/main")
    # A second export takes the place of the first, from the first as well as from the artifact.
    datafree("export", target, "--hf", tmp_path / "again")
    datafree("export", alone, "--hf", target)
    again = (tmp_path / "again" / "README.md").read_text("utf-8")
    assert again == card == (target / "README.md").read_text("utf-8")
    assert (target / ".git" / "HEAD").exists() and not (tmp_path / "again" / ".git").exists()
    # Other files of an export may change: a hub adds to this one.
    (target / ".gitattributes").write_text("theirs", "utf-8")
    datafree("export", alone, "--hf", target)
    # An edited card is nobody's to replace, and no damage.
    (target / "README.md").write_text("mine", "utf-8")
    assert "README.md was edited" in datafree("export", alone, "--hf", target, refused=True)
    Artifact.load(target)
    (target / "README.md").unlink()
    datafree("export", alone, "--hf", target)


def test_the_card_has_the_figures_and_the_protocol_of_the_run(
    embedded_vlm: VLM, tmp_path: Path, datafree: Call
) -> None:
    metrics = write_run(tmp_path / "workshop", embedded_vlm)
    datafree("export", tmp_path / "workshop/artifact", "--hf", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text("utf-8")
    assert "mAP on 40 images of folder" in card
    for method, by_branch in metrics["map"].items():
        low, high = metrics["ci"][method]
        figures = " | ".join(f"{by_branch[branch]:.1f}" for branch in SCORE_KINDS)
        assert f"| `{method}` | {figures} | {low:.1f} to {high:.1f} |" in card
    assert "- selected on: text: held-out captions" in card
    assert "- seeds: 3, 7" in card
    assert "that of seed 7, chosen by text: held-out captions" in card
    assert "`some/model-1B`" in card
    assert "80 templates, filled in" in card
    assert "Not measured" not in card


def test_the_card_says_which_artifact_and_how_many_images_taught(
    alone: Path, tmp_path: Path, datafree: Call
) -> None:
    learned = Learned(
        by="adapt", moved=True, parent="0123abc", images=("a" * 64,) * 7, figures=("F1 up.",)
    )
    replace(Artifact.load(alone), learned=learned).save(tmp_path / "better")
    datafree("export", tmp_path / "better", "--hf", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text("utf-8")
    for text in ("learned from 7 labelled images", "`0123abc`", "F1 up.", "adapted to labelled"):
        assert text in card
    assert Artifact.load(tmp_path / "hf").learned == learned


def test_own_sentences_are_not_said_to_be_a_language_model_s(
    embedded_vlm: VLM, tmp_path: Path, datafree: Call
) -> None:
    write_run(tmp_path / "run", embedded_vlm)
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text("utf-8"))
    config["knowledge"]["questions"] = {"per_category": 0, "relationships": 0}
    config["captions"] = {"files": ["/my/own.tsv"]}
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    datafree("export", tmp_path / "run/artifact", "--hf", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text("utf-8")
    assert "given by the owner of the run (`own.tsv`)" in card
    assert "language model" not in card and "model-1B" not in card


def test_figures_of_sentences_are_not_given_for_figures_of_photos(
    embedded_vlm: VLM, tmp_path: Path, datafree: Call
) -> None:
    metrics = write_run(tmp_path / "run", embedded_vlm, images=0)
    coverage = CaptionCoverage(20, 3, ("café",), ("dog", "café"))
    metrics["captions"] = asdict(coverage)
    (tmp_path / "run/metrics.json").write_text(json.dumps(metrics), "utf-8")
    datafree("export", tmp_path / "run/artifact", "--hf", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text("utf-8")
    assert "held-out captions (there were no images)" in card
    assert "promise little for photos" in card
    for note in caption_notes(metrics):
        assert note in card
    assert "No training caption shows 1 of 3 labels: café." in card


def test_a_label_with_a_fence_stays_in_its_list(
    embedded_vlm: VLM, tmp_path: Path, datafree: Call
) -> None:
    artifact = artifact_for(embedded_vlm)
    odd = tuple(Category(name=name) for name in ("```dog", "# cat", "<b>car</b>"))
    replace(
        artifact,
        categories=CategoryList(categories=odd),
        tree={"all": {"all": [category.name for category in odd]}},
    ).save(tmp_path / "artifact")
    datafree("export", tmp_path / "artifact", "--hf", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text("utf-8")
    assert "````text\n```dog\n# cat\n<b>car</b>\n````" in card


@needs_onnx
def test_one_command_writes_both(tmp_path: Path, datafree: Call) -> None:
    import onnxruntime

    vlm = tiny_clip("tiny-ViT", tmp_path / "clip")
    artifact = artifact_for(vlm)
    artifact.save(tmp_path / "artifact")
    file, folder = tmp_path / "out" / "model.onnx", tmp_path / "out" / "hf"
    printed = datafree("export", tmp_path / "artifact", "--onnx", file, "--hf", folder)
    assert str(file) in printed and str(folder) in printed
    assert "not CLIP" not in (folder / "README.md").read_text("utf-8")
    pixels = np.zeros((1, 3, 32, 32), dtype=np.uint8)
    (scores,) = onnxruntime.InferenceSession(file).run(None, {"pixels": pixels})
    expected = Tagger(artifact, vlm).scores([Image.new("RGB", (32, 32))])
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


def test_what_cannot_be_exported_is_reported_in_one_line(
    alone: Path, tmp_path: Path, datafree: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    for arguments, words in (
        ((alone,), "--onnx FILE, --hf FOLDER or both"),
        ((tmp_path / "nowhere", "--hf", tmp_path / "hf"), "no artifact"),
        ((alone, "--hf", tmp_path / "photos"), "photos exists and is not an export"),
        ((alone, "--hf", tmp_path / "photos" / "a.jpg"), "exists and is not an export"),
        ((alone, "--hf", alone), "must be outside the artifact"),
        ((alone, "--onnx", alone / "model.onnx"), "must be outside the artifact"),
        ((alone, "--onnx", tmp_path / "photos"), "--onnx: .*photos is a folder"),
    ):
        message = datafree("export", *arguments, refused=True)
        assert re.search(words, message), message
    assert (tmp_path / "photos" / "a.jpg").is_file()
    Artifact.load(alone)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name)
    )
    message = datafree("export", alone, "--onnx", tmp_path / "model.onnx", refused=True)
    install = f"{sys.executable} -m pip install onnx onnxscript"  # keeps torch, names our own
    assert f"--onnx needs onnx and onnxscript: {install}" in message
