"""Pools say on which nodes engines and workers may be, and change nothing of what they do."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config import RunConfig, load_config
from orchestrator.config_file import InputError
from orchestrator.plan import Plan, make_plan
from orchestrator.preflight import (
    Node,
    Resources,
    WorkerShare,
    place_engines,
    place_workers,
)
from workers.knowledge_pool import Placement

CLUSTER = Resources(
    (
        Node(4, 0),
        Node(8, 2, "L4", frozenset({"engines"})),
        Node(8, 2, "L4", frozenset({"engines", "spare"})),
        Node(16, 1, "H100", frozenset({"training"})),
    )
)


def config(folder: Path, *overrides: str) -> RunConfig:
    (folder / "a.yaml").write_text("name: a\ncategories: [dog, car]", "utf-8")
    cache, runs = str(folder / "cache"), str(folder / "runs")
    return load_config(folder / "a.yaml", list(overrides), cache, runs)


def test_only_nodes_of_the_pool_are_counted(tmp_path: Path) -> None:
    assert place_engines(config(tmp_path), CLUSTER) == Placement(5, 1, 1)
    pooled = config(tmp_path, "knowledge.llm.pool=engines", "tuning.pool=training")
    assert place_engines(pooled, CLUSTER) == Placement(4, 1, 1, "engines")
    assert place_workers(pooled, CLUSTER) == WorkerShare(1, 1, "training")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("knowledge.llm.engines=5", "knowledge.llm.engines: 5 .* never be scheduled: there are 16"),
        (
            "knowledge.llm.tensor_parallel=3",
            "3 GPUs of one machine an engine, but there are 16 CPU",
        ),
    ],
)
def test_engines_that_do_not_fit_in_their_pool(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        place_engines(config(tmp_path, "knowledge.llm.pool=engines", override), CLUSTER)


def test_workers_that_do_not_fit_in_their_pool(tmp_path: Path) -> None:
    overrides = ("tuning.pool=training", "tuning.workers=2", "tuning.gpus_per_worker=1")
    with pytest.raises(InputError, match=r"workers: 2 with 1 CPUs and 1 GPUs each can never"):
        place_workers(config(tmp_path, *overrides), CLUSTER)


@pytest.mark.parametrize("field", ["knowledge.llm.pool", "tuning.pool"])
def test_an_unknown_pool_is_told_with_those_that_there_are(tmp_path: Path, field: str) -> None:
    words = f"{field}: no node advertises the custom resource 'egines'; there are: "
    wrong = config(tmp_path, f"{field}=egines")
    with pytest.raises(InputError, match=words + "engines, spare, training"):
        make_plan(wrong, CLUSTER, None)
    with pytest.raises(InputError, match=words + "none"):
        make_plan(wrong, Resources((Node(2, 0),)), None)


def test_a_pool_is_in_no_key(tmp_path: Path) -> None:
    same = Resources(tuple(Node(8, 2, "L4", frozenset({name})) for name in ("engines", "training")))

    def keys(*overrides: str) -> tuple[dict[str, object], list[str]]:
        plan: Plan = make_plan(config(tmp_path, *overrides), same, None)
        return plan.knowledge.llm_identity, [stage.key for stage in plan.stages]

    assert keys("knowledge.llm.pool=engines", "tuning.pool=training") == keys()


def test_of_the_cluster_s_gpus_those_of_the_pool_form_answers(tmp_path: Path) -> None:
    pooled = config(tmp_path, "knowledge.llm.pool=engines")
    assert make_plan(pooled, CLUSTER, None).knowledge.llm_identity["accelerators"] == ["L4"]
    both = make_plan(config(tmp_path), CLUSTER, None).knowledge.llm_identity["accelerators"]
    assert both == ["H100", "L4"]
