"""`~` means the home folder in every path, in a config and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run_datafree
from PIL import Image

from orchestrator.cli import _home_expanded
from orchestrator.cluster.resources import Node, Resources
from orchestrator.config.load import load_config
from orchestrator.plan.knowledge import plan_knowledge

CONFIG = """
name: home
categories: ~/labels.txt
paths: {cache: ~/cache, runs: ~/runs}
knowledge: {llm: {model: ~/llm}, questions: {templates: ~/templates.yaml}}
captions: {files: [~/own.tsv]}
hierarchy: {groups: ~/groups.yaml}
vlm: {kind: open_clip, model: RN50, pretrained: ~/rn50.pt, quick_gelu: true, resolution: 224}
evaluation: {dataset: folder, root: ~/photos}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "home.yaml": CONFIG,
        "labels.txt": "dog\ncar\n",
        "own.tsv": "My dog sleeps.\tdog\nA red car.\tcar\n",
        "templates.yaml": "{}",
        "groups.yaml": "all: {one: [dog], two: [car]}",
        "rn50.pt": "",
        "llm/config.json": json.dumps({"architectures": ["LlamaForCausalLM"]}),
        "photos/labels.csv": "a.png,dog\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    Image.new("RGB", (40, 30)).save(tmp_path / "photos" / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DATAFREE_CACHE", "DATAFREE_RUNS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_every_path_of_a_config(home: Path) -> None:
    config = load_config(home / "home.yaml", [], None, None)
    assert config.categories == str(home / "labels.txt")
    assert config.knowledge.llm.model == str(home / "llm")
    assert config.knowledge.questions.templates == str(home / "templates.yaml")
    assert config.captions.files == (str(home / "own.tsv"),)
    assert config.hierarchy.groups == str(home / "groups.yaml")
    assert config.vlm.pretrained == str(home / "rn50.pt")
    assert config.evaluation.root == str(home / "photos")
    plan = plan_knowledge(config, Resources((Node(2, 0),)))
    assert (plan.cache, plan.run_folder) == (home / "cache", home / "runs" / "home")
    assert plan.llm_path == home / "llm"


def test_paths_on_the_command_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("DATAFREE_CACHE", "~/elsewhere")
    for options, cache in (([], "elsewhere"), (["--cache=~/mine"], "mine")):
        done = run_datafree(monkeypatch, capsys, "doctor", *options)
        assert f"{home / cache}, writable" in done.out
    done = run_datafree(monkeypatch, capsys, "knowledge", "~/home.yaml", "--dry-run")
    assert done.code == 0, done.err
    done = run_datafree(monkeypatch, capsys, "tag", "~/nowhere", "~/photos/*.png")
    assert f"{home / 'nowhere'}: no artifact there" in done.err
    mine = str(home / "a")
    assert _home_expanded(["--out=~/a", "mine=~/a", "~/a"]) == [
        f"--out={mine}",
        f"mine={mine}",
        mine,
    ]
    for other in ("a~/b", "~", "dog,~x", "x=y=~/a"):
        assert _home_expanded([other]) == [str(home) if other == "~" else other]
    # The cluster's home need not be this one.
    assert _home_expanded(["submit", "a.yaml", "--cache", "~/a"])[-1] == "~/a"
