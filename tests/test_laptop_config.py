"""`configs/laptop.yaml` is planned without a network, and its prompts fit CLIP's context."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from orchestrator.cluster.resources import Node, Resources
from orchestrator.config.load import load_config
from orchestrator.config.models import RunConfig
from orchestrator.errors import InputError
from orchestrator.plan.run import make_plan

LAPTOP = Path(__file__).parent.parent / "configs/laptop.yaml"


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config(LAPTOP, [], str(tmp_path / "cache"), str(tmp_path / "runs"))


def test_the_laptop_is_planned_without_a_network(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> None:
        raise OSError("a plan asked the network")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    plan = make_plan(config, Resources((Node(4, 0),)), None)
    assert (plan.knowledge.engines.gpus, plan.share.gpus) == (0, 0)
    assert plan.categories.names == config.categories
    assert [stage.name for stage in plan.stages] == [
        *("knowledge", "caption_features", "hierarchy", "tuning", "evaluation")
    ]


def test_it_is_real_clip_and_a_model_of_the_hub(config: RunConfig) -> None:
    vlm = config.vlm
    assert (vlm.kind, vlm.model, vlm.pretrained) == ("open_clip", "RN50-quickgelu", "openai")
    assert config.knowledge.llm.model == "Qwen/Qwen2.5-0.5B-Instruct"
    assert config.scoring.fusion == "mean"


def test_a_plan_refuses_prompts_that_exceed_the_context(tmp_path: Path) -> None:
    """So the plan above says that this config's do not."""
    config = load_config(LAPTOP, ["prompts.global_branch.shared=64"], str(tmp_path), str(tmp_path))
    with pytest.raises(InputError, match="exceed the 77 that RN50-quickgelu reads"):
        make_plan(config, Resources((Node(4, 0),)), None)
