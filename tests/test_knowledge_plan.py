"""What the key of an answer is made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.config import load_config
from orchestrator.knowledge_plan import KnowledgePlan, plan_knowledge
from orchestrator.preflight import Node, Resources
from workers.llm_engine import GPU_DEFAULT

ON_CPU = Resources((Node(8, 0),))


def plan(folder: Path, *overrides: str, resources: Resources = ON_CPU) -> KnowledgePlan:
    (folder / "llm").mkdir(exist_ok=True)
    (folder / "llm/config.json").write_text(json.dumps({"architectures": ["Llama"]}), "utf-8")
    text = "name: a\ncategories: [dog, car]\nknowledge: {llm: {model: llm}}"
    (folder / "a.yaml").write_text(text, "utf-8")
    cache, runs = str(folder / "cache"), str(folder / "runs")
    return plan_knowledge(load_config(folder / "a.yaml", list(overrides), cache, runs), resources)


@pytest.mark.parametrize(
    "override",
    [
        "llm.max_num_seqs=64",
        "llm.max_model_len=512",
        "llm.cpus_per_engine=2",
        "llm.adapter=base",
        "sampling.temperature=0.1",
        "sampling.max_tokens=8",
    ],
)
def test_what_forms_an_answer_is_in_its_key(tmp_path: Path, override: str) -> None:
    changed = plan(tmp_path, f"knowledge.{override}")
    assert changed.llm_identity != plan(tmp_path).llm_identity
    assert changed.stage.key != plan(tmp_path).stage.key


def test_the_model_and_the_environment_are_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plan(tmp_path).llm_identity
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads = plan(tmp_path).llm_identity
    assert threads != before
    monkeypatch.undo()
    (tmp_path / "llm").mkdir(exist_ok=True)
    (tmp_path / "llm/weights.bin").write_bytes(b"other")
    assert plan(tmp_path).llm_identity != before


def test_how_many_engines_answer_is_not_in_the_key(tmp_path: Path) -> None:
    one, two = (
        plan(tmp_path, "knowledge.llm.cpus_per_engine=4", f"knowledge.llm.engines={engines}")
        for engines in (1, 2)
    )
    assert one.engines.engines == 1
    assert two.engines.engines == 2
    assert one.stage.key == two.stage.key


def test_own_templates_and_other_gpus_are_in_the_key(tmp_path: Path) -> None:
    gpus = [Resources((Node(8, 2, kind),)) for kind in ("A100", "H100")]
    a100, h100 = (plan(tmp_path, resources=resources).llm_identity for resources in gpus)
    assert a100 != h100
    asks = "instruction: '{name}', heading: h, line: '{name}:', examples: []"
    own = f"own: {{kind: specific, {asks}}}"
    (tmp_path / "own.yaml").write_text(own, "utf-8")
    with_own = plan(tmp_path, "knowledge.questions.templates=own.yaml")
    assert list(with_own.templates)[-1] == "own"
    assert with_own.stage.key != plan(tmp_path).stage.key
    assert with_own.llm_identity == plan(tmp_path).llm_identity


def test_the_default_model_is_glm_on_gpus_and_the_embedded_one_without(tmp_path: Path) -> None:
    on_gpus = Resources((Node(8, 2),))
    default = "knowledge.llm.model=auto"
    assert plan(tmp_path, default, resources=on_gpus).config.knowledge.llm.model == GPU_DEFAULT
    assert plan(tmp_path, default).config.knowledge.llm.model == "embedded:gemma-3-270m"
