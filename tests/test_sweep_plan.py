"""What the points of a sweep share, and which mistakes are refused before anything starts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.resources import Node, Resources
from orchestrator.errors import InputError
from orchestrator.plan.run import make_plan
from orchestrator.sweep.plan import SweepPlan, plan_sweep

TWO_CORES = Resources((Node(2, 0),))
THREE_NODES = Resources((Node(1, 0), Node(4, 2), Node(4, 1)))


@pytest.fixture
def raw(tmp_path: Path, lasting_cache: Path) -> dict[str, Any]:
    return {
        "name": "own",
        "paths": {"cache": str(lasting_cache), "runs": str(tmp_path / "runs")},
        "categories": ["dog", "cat", "bus", "car"],
        "captions": {"templates": True},
        "knowledge": {"questions": {"per_category": 0, "relationships": 0}},
        "hierarchy": {"coarse": 1, "fine": 2},
        "prompts": {"depth": 4},
        "sweep": {"space": {"prompts.depth": {"grid": [1, 2, 4]}}},
    }


def plan(raw: dict[str, Any], resources: Resources = TWO_CORES) -> SweepPlan:
    return plan_sweep(raw, Path("/nowhere/sweep.yaml"), resources, None)


def test_points_that_differ_only_in_tuning_share_all_stages_before(raw: dict[str, Any]) -> None:
    raw["sweep"]["space"]["losses.order"] = {"grid": [0, 0.2]}
    planned = plan(raw)
    assert len(planned.points) == 6, "the default is one of them"
    assert planned.default.fields == {"prompts.depth": 4, "losses.order": 0.2}
    assert list(planned.shared()) == planned.default.plan.shared
    assert len({point.plan.tuning[0] for point in planned.points}) == 6


def test_a_point_has_the_stages_of_a_run_of_its_config(raw: dict[str, Any]) -> None:
    raw["sweep"]["space"] = {
        "scoring.global_weight": {"grid": [0.3]},
        "tuning.batch": {"grid": [64]},
    }
    for point in plan(raw).points:
        alone = make_plan(point.plan.config, TWO_CORES, None)
        assert point.plan.stages == alone.stages


def test_points_that_differ_before_tuning_have_their_own_stages(raw: dict[str, Any]) -> None:
    raw["sweep"]["space"] = {"hierarchy.fine": {"grid": [2, 3]}}
    planned = plan(raw)
    names = [stage.name for stage in planned.shared()]
    assert sorted(names) == ["caption_features", "hierarchy", "hierarchy", "knowledge"]


def test_a_wider_space_has_the_same_trials_and_more(raw: dict[str, Any]) -> None:
    wider = copy.deepcopy(raw)
    wider["sweep"]["space"]["prompts.depth"]["grid"] = [1, 2, 3, 4]
    few, many = ({p.plan.tuning[0] for p in plan(of).points} for of in (raw, wider))
    assert few < many
    assert len(many) == len(few) + 1


def test_seeds_are_those_of_the_sweep(raw: dict[str, Any]) -> None:
    raw["seeds"] = [7]
    raw["sweep"]["seeds"] = 3
    assert plan(raw).seeds == (0, 1, 2)


def test_slots_are_the_trials_that_fit_at_once(raw: dict[str, Any]) -> None:
    assert plan(raw).slots == 2
    raw["tuning"] = {"workers": 2}
    assert plan(raw).slots == 1
    assert plan(raw, THREE_NODES).slots == 1, "three GPUs, two per trial"
    raw["tuning"] = {"workers": 1, "gpus_per_worker": 0.5}
    assert plan(raw, THREE_NODES).slots == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"space": {"tuning.workers": {"grid": [1, 30]}}},
            r"tuning\.workers cannot be swept",
        ),
        ({"space": {"vlm": {"grid": [{}]}}}, "vlm cannot be swept"),
        ({"space": {"captions.held_out": {"grid": [0.2]}}}, "changes the held-out captions"),
        ({"space": {"prompts.dept": {"grid": [1]}}}, "unknown field prompts.dept; .*depth"),
        ({"space": {"losses": {"grid": [3]}}}, "losses"),
        ({"asha": {"grace": 10}}, "sweep.asha.grace must be below tuning.epochs, 10 .got 10."),
        ({"sedes": 3}, "sweep: sedes: unknown field; did you mean seeds"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(
    raw: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    raw["sweep"].update(change)
    with pytest.raises(InputError, match=message) as error:
        plan(raw)
    assert "\n" not in str(error.value)


def test_trials_that_fit_nowhere_are_refused(raw: dict[str, Any]) -> None:
    raw["tuning"] = {"workers": 2, "cpus_per_worker": 1.5}
    with pytest.raises(InputError, match=r"tuning.workers: 2 with 1.5 CPUs .* never be scheduled"):
        plan(raw)


def test_a_config_without_a_sweep_part_is_refused_with_an_example(raw: dict[str, Any]) -> None:
    del raw["sweep"]
    with pytest.raises(InputError, match=r"has no `sweep` part; see configs/sweep\.yaml"):
        plan(raw)
