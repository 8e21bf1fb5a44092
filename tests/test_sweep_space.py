"""The points of a sweep: grids, draws, and what a wider space leaves as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.messages import validate
from orchestrator.errors import InputError
from orchestrator.sweep.settings import Axis, SweepSettings
from orchestrator.sweep.space import config_at, describe, points


def settings(space: dict[str, Any], **others: Any) -> SweepSettings:
    return validate(SweepSettings, {"space": space, **others}, "sweep")


def test_grids_are_crossed_and_draws_are_joined_to_each_combination() -> None:
    space = {
        "prompts.depth": {"grid": [1, 4]},
        "losses.order": {"grid": [0, 0.2, 1]},
        "tuning.lr": {"loguniform": [0.001, 0.1]},
    }
    listed = points(settings(space, samples=5))
    assert len(listed) == 2 * 3 * 5
    rates = [point["tuning.lr"] for point in listed if point["prompts.depth"] == 1]
    assert rates == [point["tuning.lr"] for point in listed if point["prompts.depth"] == 4]
    assert len({*rates}) == 5
    assert all(0.001 < rate < 0.1 for rate in rates)


def test_draws_follow_their_distribution() -> None:
    axes = {
        "uniform": Axis(uniform=(2.0, 4.0)),
        "loguniform": Axis(loguniform=(0.01, 1.0)),
        "choice": Axis(choice=("a", "b", "c", "d")),
    }
    drawn = {name: [axis.draw(name, n) for n in range(4000)] for name, axis in axes.items()}
    assert sum(value < 3 for value in drawn["uniform"]) / 4000 == pytest.approx(0.5, abs=0.03)
    assert sum(value < 0.1 for value in drawn["loguniform"]) / 4000 == pytest.approx(0.5, abs=0.03)
    for letter in "abcd":
        assert drawn["choice"].count(letter) / 4000 == pytest.approx(0.25, abs=0.03)


def test_a_wider_space_keeps_the_points_that_it_had() -> None:
    one: dict[str, Any] = {"losses.margin": {"uniform": [0.1, 1]}}
    few = points(settings(one, samples=3))
    assert points(settings(one, samples=8))[:3] == few
    two = {"prompts.depth": {"grid": [2, 3]}, **one}
    assert [p["losses.margin"] for p in points(settings(two, samples=3))][:3] == [
        p["losses.margin"] for p in few
    ]
    assert points(settings(one, samples=3, seed=1)) != few


def test_the_same_point_is_tried_once() -> None:
    assert len(points(settings({"prompts.depth": {"choice": [1, 2]}}, samples=40))) == 2


@pytest.mark.parametrize(
    ("space", "others", "message"),
    [
        ({}, {}, "space: must be"),
        ({"tuning.lr": {}}, {}, "exactly one of grid, choice, uniform and loguniform"),
        ({"tuning.lr": {"grid": [1], "choice": [1]}}, {}, "exactly one of"),
        ({"tuning.lr": {"uniform": [2, 1]}}, {}, "first bound must be below"),
        ({"tuning.lr": {"loguniform": [0, 1]}}, {}, "bounds must be above 0"),
        ({"tuning.lr": {"uniform": [1]}}, {}, "a list of at least 2"),
        ({"evaluation.split_seed": {"grid": [0, 1]}}, {}, "cannot be swept"),
        ({"paths.cache": {"grid": ["a"]}}, {}, "cannot be swept"),
        ({"tuning.lr": {"grid": [1]}}, {"samples": 3}, "every field has a grid"),
        ({"tuning.lr": {"grid": [1]}}, {"search": "optuna"}, "use choice"),
        (
            {"hierarchy.fine": {"choice": [1]}},
            {"search": "optuna"},
            "can only vary fields of tuning",
        ),
        ({"a.b": {"grid": [1]}, "c, a.b": {"grid": [1]}}, {}, "a.b is given twice"),
        ({"tuning.lr": {"grid": [1]}}, {"asha": {"reduction": 1}}, "asha.reduction"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    space: dict[str, Any], others: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        settings(space, **others)
    assert str(error.value).startswith("sweep: ")
    assert "\n" not in str(error.value)


RAW: dict[str, Any] = {"name": "own", "categories": ["dog", "cat"], "captions": {"templates": True}}


def test_a_point_is_the_config_with_its_values(tmp_path: Path) -> None:
    key = "prompts.global_branch.shared, prompts.local_branch.shared"
    config = config_at(RAW, {"prompts.depth": 2, key: 7}, tmp_path / "config.yaml")
    assert config.prompts.depth == 2
    assert config.prompts.global_branch.shared == config.prompts.local_branch.shared == 7
    assert config_at(RAW, {}, tmp_path / "config.yaml").prompts.depth != 2, "RAW is as it was"


def test_a_point_that_no_config_can_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sweep.space: prompts.depth=9: .*prompts.depth"):
        config_at(RAW, {"prompts.depth": 9}, tmp_path / "config.yaml")
    with pytest.raises(InputError, match=r"did you mean losses.order"):
        config_at(RAW, {"losses.ordr": 1}, tmp_path / "config.yaml")
    with pytest.raises(InputError, match="'categories' has no fields"):
        config_at(RAW, {"categories.first": 1}, tmp_path / "config.yaml")


def test_a_point_is_described_by_its_values() -> None:
    point = {"tuning.lr": 0.012345678, "a.b, c.d": 3, "hierarchy.groups": "auto"}
    assert describe(point) == "tuning.lr=0.01235, a.b=3, hierarchy.groups=auto"
