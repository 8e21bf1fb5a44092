"""What a sweep remembers about its trials, and what it must not reuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.sweep.records import TrialRecords
from workers.stage import Stage, run_stage
from workers.tuning.job import HISTORY
from workers.tuning.trial_settings import ASHA
from workers.tuning.trials import Outcome

RULE = ASHA(grace=2, reduction=3)
ENTRIES = [{"epoch": 1.0, "held_out_map": 40.0, "selecting_map": 50.0}]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage("tuning", "abc", tmp_path / "cache")


def fill(stage: Stage) -> None:
    """As a run does that tunes without images."""

    def write(staging: Path) -> None:
        (staging / HISTORY).write_text(json.dumps([{"epoch": 1.0, "held_out_map": 40.0}]))

    run_stage(stage, write)


def test_a_stopped_trial_stays_stopped_until_the_rule_changes(stage: Stage, tmp_path: Path) -> None:
    stopped = Outcome("stopped", ENTRIES)
    TrialRecords(tmp_path, "half", RULE).add(stage, {"a": 1}, stopped)
    assert TrialRecords(tmp_path, "half", RULE).find(stage) == stopped
    assert TrialRecords(tmp_path, "half", None).find(stage) is None
    assert TrialRecords(tmp_path, "half", ASHA(grace=1, reduction=3)).find(stage) is None


def test_a_failure_is_kept_and_tried_again(stage: Stage, tmp_path: Path) -> None:
    failed = Outcome("failed", [], "the loss is nan")
    TrialRecords(tmp_path, "text", None).add(stage, {}, failed)
    records = TrialRecords(tmp_path, "text", None)
    assert records.find(stage) is None
    assert records.failure(stage) == failed


def test_figures_count_only_for_the_images_they_came_from(stage: Stage, tmp_path: Path) -> None:
    """Another split of the images: the tuning is done, the mAP of the old half says nothing."""
    fill(stage)
    old = TrialRecords(tmp_path, "half of seed 0", RULE)
    old.add(stage, {}, Outcome("finished", ENTRIES))
    assert old.find(stage) == Outcome("finished", ENTRIES)
    found = TrialRecords(tmp_path, "half of seed 1", RULE).find(stage)
    assert found is not None and found.status == "finished"
    assert "selecting_map" not in found.entries[-1]


def test_a_stage_that_another_command_filled_is_finished(stage: Stage, tmp_path: Path) -> None:
    records = TrialRecords(tmp_path, "text", RULE)
    records.add(stage, {}, Outcome("stopped", ENTRIES))
    fill(stage)
    found = records.find(stage)
    assert found is not None and found.status == "finished"
    assert not records.has(stage), "the record is of the stop"


def test_the_order_of_ends_outlives_the_command(tmp_path: Path) -> None:
    stages = [Stage("tuning", key, tmp_path / "cache") for key in ("c", "a", "b")]
    for number, stage in enumerate(stages):
        TrialRecords(tmp_path, "text", None).add(stage, {"n": number}, Outcome("stopped", ENTRIES))
    records = TrialRecords(tmp_path, "text", None)
    assert sorted(stages, key=records.place) == stages
    assert [fields["n"] for fields in records.fields()] == [0, 1, 2]
    records.add(stages[0], {"n": 0}, Outcome("failed", []))
    assert records.place(stages[0]) > records.place(stages[2])
