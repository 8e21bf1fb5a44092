"""`configs/paper.yaml` is the released recipe, and its plan needs no network."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.resources import Node, Resources
from orchestrator.config.load import load_config
from orchestrator.config.models import RunConfig
from orchestrator.plan.run import make_plan

PAPER = Path(__file__).parent.parent / "configs/paper.yaml"

# The released code's constants (arXiv 2403.01209), by the names of our fields.
RELEASED: dict[str, Any] = {
    "seeds": (0,),
    "categories": "coco",
    "knowledge.llm.model": "zai-org/GLM-4-9B-0414",
    "knowledge.llm.adapter": "auto",
    "knowledge.llm.engines": "auto",
    "knowledge.llm.tensor_parallel": 1,
    "knowledge.llm.cpus_per_engine": "auto",
    "knowledge.llm.max_model_len": 4096,
    "knowledge.llm.max_num_seqs": 256,
    "knowledge.questions.attributes": 90,
    "knowledge.questions.per_category": 40,
    "knowledge.questions.relationships": 4000,
    "knowledge.sampling.temperature": 0.9,
    "knowledge.sampling.top_p": 0.95,
    "knowledge.sampling.max_tokens": 128,
    "captions.files": (),
    "captions.templates": False,
    "captions.min_words": 4,
    "captions.max_words": 60,
    "captions.held_out": 0.1,
    "prompts.depth": 4,
    "hierarchy.groups": "builtin",
    "hierarchy.coarse": 9,
    "hierarchy.fine": 20,
    "vlm.kind": "open_clip",
    "vlm.model": "RN50-quickgelu",
    "vlm.pretrained": "openai",
    "vlm.resolution": 224,
    "vlm.resize": "bilinear",
    "prompts.global_branch.hierarchical": True,
    "prompts.global_branch.shared": 16,
    "prompts.global_branch.fine": 8,
    "prompts.global_branch.coarse": 4,
    "prompts.global_branch.category": 4,
    "prompts.global_branch.order": ("shared", "fine", "coarse", "category"),
    "prompts.local_branch.hierarchical": False,
    "prompts.local_branch.shared": 32,
    "prompts.init_std": 0.02,
    "scoring.scale": 4.0,
    "scoring.local_temperature": 50.0,
    "scoring.fusion": "softmax",
    "scoring.global_weight": 0.65,
    "losses.global_rank": 1.0,
    "losses.local_rank": 1.0,
    "losses.margin": 1.0,
    "losses.order": 0.2,
    "losses.order_on": ("global",),
    "losses.order_temperature": 100.0,
    "tuning.optimizer": "sgd",
    "tuning.lr": 0.002,
    "tuning.momentum": 0.9,
    "tuning.weight_decay": 0.0005,
    "tuning.epochs": 20,
    "tuning.batch": 512,
    "tuning.milestones": (5, 10, 15),
    "tuning.gamma": 0.1,
    "tuning.noise.std": 0.1,
    "tuning.captions_per_item": 1,
    "tuning.noise.relative": None,
    "tuning.workers": 1,
    "tuning.gpus_per_worker": "auto",
    "tuning.cpus_per_worker": "auto",
    "evaluation.dataset": "none",
}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config(PAPER, [], str(tmp_path / "cache"), str(tmp_path / "runs"))


@pytest.mark.parametrize("field", RELEASED)
def test_the_paper_config_has_the_released_constant(config: RunConfig, field: str) -> None:
    value: Any = config
    for part in field.split("."):
        value = getattr(value, part)
    assert value == RELEASED[field]


@pytest.mark.parametrize("node", [Node(8, 0), Node(16, 1, "H100")], ids=["cpu", "gpu"])
def test_the_paper_is_planned_without_a_network(
    config: RunConfig, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("a plan asked the network")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    plan = make_plan(config, Resources((node,)), None)
    assert plan.share.gpus == node.gpus
    assert plan.knowledge.engines.gpus == node.gpus
    assert plan.groups is not None
    assert (len(plan.groups.coarse_names), len(plan.groups.fine_names)) == (9, 20)
    assert len(plan.categories) == 80
    assert [stage.name for stage in plan.stages] == [
        *("knowledge", "caption_features", "hierarchy", "tuning", "evaluation")
    ]
