"""The starter: an artifact of everyday labels that comes with the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command_line import run_datafree
from PIL import Image

from orchestrator.config.inputs import load_categories, load_groups
from orchestrator.config.load import load_config
from orchestrator.tagging.serve import named_folders
from prompt_tuning import Artifact, Tagger
from prompt_tuning.categories import built_in
from prompt_tuning.datasets.stamps import stamp_files
from prompt_tuning.tagging.starter import RUN, artifact_folder

ROOT = Path(__file__).parent.parent
COMMANDS = ("tag", "calibrate", "export", "explain", "serve")


def test_it_has_the_labels_groups_and_model_of_its_config() -> None:
    config = load_config(ROOT / "configs" / "starter.yaml", [], None, None)
    categories = load_categories(config)
    groups = load_groups(config, categories)
    artifact = Artifact.load("starter")
    assert artifact.categories == categories
    assert groups and artifact.tree == groups.tree(categories)
    assert artifact.vlm_settings == config.vlm
    assert artifact.calibration.source == "held-out sentences"


def test_its_first_80_labels_are_those_of_coco() -> None:
    assert built_in("starter").categories[:80] == built_in("coco").categories


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in RUN.rglob("*") if file.is_file()) <= 3_000_000


def test_a_folder_of_that_name_comes_first_if_it_holds_an_artifact(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = artifact_folder("starter")
    assert packaged.is_absolute() and packaged.is_relative_to(ROOT)
    Path("starter").mkdir()
    (Path("starter") / "photo.jpg").touch()
    assert artifact_folder("starter") == artifact_folder(Path("starter")) == packaged
    assert named_folders(["starter", "mine=starter"]) == {"starter": packaged, "mine": packaged}
    Artifact.load("starter").save("copy")
    assert named_folders(["copy"]) == {"copy": tmp_path / "copy"}
    shutil.copytree(artifact, "starter", dirs_exist_ok=True)
    assert artifact_folder("starter") == Path("starter")
    assert Artifact.load("starter").categories == Artifact.load(artifact).categories
    assert named_folders(["starter"]) == {"starter": tmp_path / "starter"}
    assert artifact_folder("runs/starter") == Path("runs/starter")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_it(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = run_datafree(monkeypatch, capsys, command, "--help").out
    assert "starter" in shown


def test_it_tags_and_is_explained_and_exported(
    stamps: Path,
    lasting_cache: Path,
    embedded_vlm: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`embedded_vlm`: has put the embeddings of ImageNet's classes into the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATAFREE_CACHE", str(lasting_cache))
    wanted = ["zebra", "strawberry", "guitar"]
    Path("photos").mkdir()
    for name in wanted:
        with Image.open(stamps / stamp_files()[name][0]) as stamp:
            cut = stamp.convert("RGBA")
        page = Image.new("RGBA", cut.size, "white")
        Image.alpha_composite(page, cut).convert("RGB").save(f"photos/{name}.png")
    done = run_datafree(monkeypatch, capsys, "tag", "starter", "photos", "--out", "tags.jsonl")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in Path("tags.jsonl").read_text("utf-8").splitlines()[1:]]
    tags = {Path(row["file"]).stem: [tag["name"] for tag in row["tags"]] for row in rows}
    assert {name for name in wanted if tags[name][:1] == [name]} == set(wanted)
    tagger = Tagger.load("starter", device="cpu", cache=lasting_cache)
    score = tagger.scores(["photos/zebra.png"])[0, tagger.names.index("zebra")]
    (row,) = (row for row in rows if row["file"].endswith("zebra.png"))
    np.testing.assert_allclose(row["tags"][0]["score"], score, atol=1e-4)

    done = run_datafree(monkeypatch, capsys, "explain", "starter", "guitar")
    assert done.code == 0, done.err
    assert "guitar" in done.out
    done = run_datafree(monkeypatch, capsys, "export", "starter", "--hf", "card")
    assert done.code == 0, done.err
    card = Path("card/README.md").read_text("utf-8")
    assert "embedded:gemma-3-270m" in card
    assert "Protocol:" in card


@pytest.mark.slow
def test_a_wheel_brings_it(tmp_path: Path) -> None:
    source, place = tmp_path / "source", tmp_path / "place"
    source.mkdir()
    for room in ("prompt_tuning", "workers", "orchestrator"):
        shutil.copytree(ROOT / room, source / room)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    here = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", *here, str(source)],
        check=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(place)
    names = {file.relative_to(RUN).as_posix() for file in RUN.rglob("*") if file.is_file()}
    brought = place / "prompt_tuning/data/starter"
    assert names <= {file.relative_to(brought).as_posix() for file in brought.rglob("*")}
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "from prompt_tuning import Artifact\n"
            "from prompt_tuning.tagging.starter import RUN\n"
            "print(RUN, len(Artifact.load('starter').categories))",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == [str(brought), str(len(built_in("starter")))]
