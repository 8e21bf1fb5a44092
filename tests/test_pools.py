"""Pools say on which nodes engines and workers may be, and change nothing of what they do."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from pydantic import ValidationError
from ray._private.label_utils import validate_label_selector

from orchestrator.cluster.placement import place, place_engines, place_workers
from orchestrator.cluster.resources import Node, Resources
from orchestrator.config.load import load_config
from orchestrator.config.models import RunConfig
from orchestrator.errors import InputError
from orchestrator.plan.run import Plan, make_plan
from workers.placement import NodeSettings, Placement

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


def test_no_actor_could_get_more_on_any_nodes() -> None:
    """Against a search: every share that can matter is n/k for whole n and k."""
    for seed in range(300):
        draw = random.Random(seed)
        nodes = [Node(draw.randint(0, 12), draw.randint(0, 4)) for _ in range(draw.randint(1, 4))]
        count, gpus = draw.randint(1, 8), draw.choice([0, 0, 0.5, 1, 2])
        least, most = draw.choice([(1, math.inf), (0.25, 1), (3, 3), (1, 4)])
        shares = {Fraction(n, k) for n in range(1, 13) for k in range(1, count + 1)}
        allowed = [
            share
            for share in {Fraction(1, 4), *shares}
            if least <= share <= most and (share.denominator == 1 or share < 1)
        ]
        best = max((share for share in allowed if _fit(count, share, gpus, nodes)), default=None)
        given = (count, gpus, Resources(tuple(nodes)), "workers", least, most)
        if best is None:
            with pytest.raises(InputError, match=r"^workers: .* can never be scheduled"):
                place(*given)
        else:
            assert place(*given) == pytest.approx(float(best)), given


def _fit(count: int, cpus: Fraction, gpus: float, nodes: list[Node]) -> bool:
    """Whether so many actors find room, taken one by one."""
    for node in nodes:
        actors = 0
        while (actors + 1) * cpus <= node.cpus and (actors + 1) * gpus <= node.gpus:
            actors += 1
        count -= actors
    return count <= 0


def test_only_nodes_of_the_pool_are_counted(tmp_path: Path) -> None:
    assert place_engines(config(tmp_path).knowledge.llm, CLUSTER) == Placement(5, 1, 1)
    pooled = config(tmp_path, "knowledge.llm.pool=engines", "tuning.pool=training")
    assert place_engines(pooled.knowledge.llm, CLUSTER) == Placement(4, 1, 1, "engines")
    assert place_workers(pooled.tuning, CLUSTER) == Placement(1, 1, 1, "training")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("knowledge.llm.engines=5", "knowledge.llm.engines: 5 .* never be scheduled: there are 16"),
        (
            "knowledge.llm.tensor_parallel=3",
            "3 GPUs of one node per engine can never be scheduled: there are 16 CPU",
        ),
    ],
)
def test_engines_that_do_not_fit_in_their_pool(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        place_engines(
            config(tmp_path, "knowledge.llm.pool=engines", override).knowledge.llm, CLUSTER
        )


def test_workers_that_do_not_fit_in_their_pool(tmp_path: Path) -> None:
    overrides = ("tuning.pool=training", "tuning.workers=2", "tuning.gpus_per_worker=1")
    with pytest.raises(
        InputError, match=r"workers: 2 with 0.25 CPUs and 1 GPUs each can never .* 1 would fit"
    ):
        place_workers(config(tmp_path, *overrides).tuning, CLUSTER)


UNEVEN = Resources((Node(1, 0), Node(7, 0)))


@pytest.mark.parametrize(
    ("count", "least", "most", "cpus"),
    [
        (1, 1, math.inf, 7),
        (2, 1, math.inf, 3),
        (3, 1, math.inf, 2),
        (8, 1, math.inf, 1),
        (8, 0.25, 1, 1),
        (9, 0.25, 1, 0.875),  # all on the larger node but one
        (93, 0.01, 1, 7 / 82),
        (2, 1.5, 1.5, 1.5),  # asked for
    ],
)
def test_each_gets_the_most_with_which_all_fit_on_uneven_nodes(
    count: int, least: float, most: float, cpus: float
) -> None:
    assert place(count, 0, UNEVEN, "workers", least, most) == cpus


def test_engines_and_workers_fit_on_uneven_nodes(tmp_path: Path) -> None:
    engines = place_engines(config(tmp_path, "knowledge.llm.engines=2").knowledge.llm, UNEVEN)
    assert engines == Placement(2, 3, 0)
    thin = Resources((Node(1, 0), Node(2, 0)))
    workers = place_workers(config(tmp_path, "tuning.workers=4").tuning, thin)
    assert workers == Placement(4, 2 / 3, 0)


def test_what_can_never_fit_is_refused_with_what_would() -> None:
    with pytest.raises(InputError, match=r"^--workers: 9 with 1 CPUs .* on 2 nodes; 8 would fit$"):
        place(9, 0, UNEVEN, "--workers")
    with pytest.raises(InputError, match=r"the largest node has 7 CPUs and 0 GPUs$"):
        place(1, 0, UNEVEN, "knowledge.llm.engines", 8, 8)


@pytest.mark.parametrize("field", ["knowledge.llm.pool", "tuning.pool"])
def test_an_unknown_pool_is_refused_with_the_known_ones(tmp_path: Path, field: str) -> None:
    words = f"{field}: no node advertises the custom resource 'egines'; the nodes advertise: "
    wrong = config(tmp_path, f"{field}=egines")
    with pytest.raises(InputError, match=words + "engines, spare, training"):
        make_plan(wrong, CLUSTER, None)
    with pytest.raises(InputError, match=words + "none"):
        make_plan(wrong, Resources((Node(2, 0),)), None)


LABELLED = Resources(
    (
        Node(8, 0, labels={"ray.io/node-id": "f0"}),
        Node(8, 2, "L4", frozenset({"spare"}), {"ray.io/accelerator-type": "L4", "tier": "spot"}),
        Node(16, 1, "H100", labels={"ray.io/accelerator-type": "H100"}),
    )
)


@pytest.mark.parametrize(
    ("condition", "cpus"),
    [
        ("ray.io/accelerator-type: H100", [16]),
        ("ray.io/accelerator-type: '!H100'", [8, 8]),
        ("ray.io/accelerator-type: 'in(L4, H100)'", [8, 16]),
        ("ray.io/accelerator-type: '!in(L4,H100)'", [8]),
        ("ray.io/accelerator-type: 'in(L4, H100)', tier: '!spot'", [16]),
    ],
)
def test_only_nodes_with_the_labels_are_counted(
    tmp_path: Path, condition: str, cpus: list[int]
) -> None:
    tuning = config(tmp_path, f"tuning.node_labels={{{condition}}}").tuning
    assert [node.cpus for node in LABELLED.chosen_by(tuning, "tuning").nodes] == cpus


def test_labels_that_no_node_has_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    wrong = config(tmp_path, "tuning.node_labels={ray.io/accelerator-type: H200}")
    words = r"^tuning.node_labels: no node has ray.io/accelerator-type: H200; the nodes have: "
    with pytest.raises(InputError, match=words + "ray.io/accelerator-type: H100, .*L4, tier: spot"):
        make_plan(wrong, LABELLED, None)
    with pytest.raises(InputError, match=words + "none$"):
        make_plan(wrong, UNEVEN, None)
    wrong = config(tmp_path, "tuning.pool=spare", "tuning.node_labels={tier: gold}")
    words = r"^tuning.node_labels: no node of the pool 'spare' has tier: gold; the nodes have: "
    with pytest.raises(InputError, match=words + "ray.io/accelerator-type: L4, tier: spot$"):
        make_plan(wrong, LABELLED, None)


@pytest.mark.parametrize(
    ("key", "condition"),
    list(
        itertools.product(
            ["tier", "ray.io/accelerator-type", "a b", "-a", "a/b/c", "x" * 64, ""],
            [
                "H100",
                "!H100",
                "in(A, B-1)",
                "!in(A,B)",
                "in()",
                "in(A",
                "a b",
                "!!A",
                "-A",
                "x" * 64,
            ],
        )
    ),
)
def test_what_ray_would_refuse_is_refused(key: str, condition: str) -> None:
    if validate_label_selector({key: condition}):
        with pytest.raises(ValidationError, match="must be a"):
            NodeSettings(node_labels={key: condition})
    else:
        NodeSettings(node_labels={key: condition})


def test_a_cluster_that_may_grow_takes_what_does_not_fit_yet(tmp_path: Path) -> None:
    growing = replace(LABELLED, may_grow=True)
    many = config(
        tmp_path, "knowledge.llm.engines=9", "tuning.workers=8", "tuning.gpus_per_worker=1"
    )
    assert place_engines(many.knowledge.llm, growing) == Placement(9, 1, 1)
    assert place_workers(many.tuning, growing) == Placement(8, 0.25, 1)
    large = config(tmp_path, "knowledge.llm.engines=2", "knowledge.llm.tensor_parallel=4")
    assert place_engines(large.knowledge.llm, growing) == Placement(2, 1, 4)
    # What is there is enough: nothing changes.
    assert place_workers(config(tmp_path).tuning, growing) == Placement(1, 1, 1)
    elsewhere = config(tmp_path, "tuning.node_labels={ray.io/accelerator-type: H200}").tuning
    assert growing.lacks(elsewhere) and not LABELLED.lacks(elsewhere)
    with pytest.raises(InputError, match=r"; a run waits for one that the cluster adds$"):
        growing.chosen_by(elsewhere, "tuning")


@pytest.mark.parametrize("override", ["tuning.workers=1", "tuning.pool=training"])
def test_a_cluster_of_which_no_node_is_up(tmp_path: Path, override: str) -> None:
    with pytest.raises(InputError, match=r"^tuning\.pool: no node of the cluster is up$"):
        place_workers(config(tmp_path, override).tuning, Resources(()))


def test_a_pool_is_in_no_key(tmp_path: Path) -> None:
    same = Resources(
        tuple(Node(8, 2, "L4", frozenset({name}), {"of": name}) for name in ("engines", "training"))
    )

    def keys(*overrides: str) -> tuple[dict[str, object], list[str]]:
        plan: Plan = make_plan(config(tmp_path, *overrides), same, None)
        return plan.knowledge.llm_identity, [stage.key for stage in plan.stages]

    assert keys("knowledge.llm.pool=engines", "tuning.pool=training") == keys()
    chosen = ("knowledge.llm.node_labels={of: engines}", "tuning.node_labels={of: training}")
    assert keys(*chosen, "knowledge.llm.wait_minutes=1", "tuning.wait_minutes=1") == keys()


def test_of_the_cluster_s_gpus_those_of_the_pool_form_answers(tmp_path: Path) -> None:
    pooled = config(tmp_path, "knowledge.llm.pool=engines")
    assert make_plan(pooled, CLUSTER, None).knowledge.llm_identity["accelerators"] == ["L4"]
    both = make_plan(config(tmp_path), CLUSTER, None).knowledge.llm_identity["accelerators"]
    assert both == ["H100", "L4"]
