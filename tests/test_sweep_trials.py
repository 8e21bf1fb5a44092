"""Trials on a real Ray Tune with stubs for work: how each of them ends."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import ray.cloudpickle
from ray.tune.search import Searcher

from orchestrator.config.messages import validate
from orchestrator.sweep.proposals import ProposedTrials
from orchestrator.sweep.settings import SweepSettings
from orchestrator.sweep.space import Fields
from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.categories import CategoryList
from prompt_tuning.hierarchy import Hierarchy
from prompt_tuning.tuning.losses import LossSettings
from prompt_tuning.tuning.prompts import PromptSettings
from prompt_tuning.tuning.scoring import ScoringSettings
from workers.stage import Stage
from workers.tuning.job import DistributedTuningSettings, TuningJob
from workers.tuning.trial_settings import ASHA
from workers.tuning.trials import OnEpoch, OnWaiting, Outcome, Trial, run_trials

EPOCHS = 6


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    # Processes of Ray cannot import this file: its functions travel whole.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def trial(number: int, folder: Path) -> Trial:
    """A trial whose work reads its number from its seed."""
    job = TuningJob(
        captions=folder,
        features=folder,
        held_out=0.1,
        categories=CategoryList(categories=({"name": "dog"}, {"name": "cat"})),
        hierarchy=Hierarchy(("a",), (0, 0), ("a",), (0,)),
        vlm=VLMSettings(),
        prompts=PromptSettings(),
        scoring=ScoringSettings(),
        losses=LossSettings(),
        tuning=DistributedTuningSettings(epochs=EPOCHS),
        seed=number,
        cache=folder,
        progress=folder / f"{number}.json",
    )
    return Trial({}, Stage("tuning", str(number), folder), job, folder, {"CPU": 1, "GPU": 0})


def report_epochs(trial: Trial, on_epoch: OnEpoch, pause: float = 0.0) -> None:
    """The higher its number, the better a trial is, from its first epoch on."""
    for epoch in range(1, EPOCHS + 1):
        time.sleep(pause)
        figure = 10.0 * trial.job.seed + epoch
        on_epoch({"epoch": epoch, "held_out_loss": -figure, "held_out_map": figure})


def fail_the_second(trial: Trial, on_epoch: OnEpoch, on_waiting: OnWaiting) -> None:
    if trial.job.seed == 1:
        raise RuntimeError("tuning: the loss is nan at epoch 1, step 3")
    report_epochs(trial, on_epoch)


def die_once(trial: Trial, on_epoch: OnEpoch, on_waiting: OnWaiting) -> None:
    """Take the process of the trial's driver down with it, the first time."""
    died = trial.storage / f"died-{trial.stage.key}"
    if not died.exists():
        died.touch()
        os._exit(1)
    report_epochs(trial, on_epoch)


def at_once(trial: Trial, on_epoch: OnEpoch, on_waiting: OnWaiting) -> None:
    report_epochs(trial, on_epoch)


def slow_if_bad(trial: Trial, on_epoch: OnEpoch, on_waiting: OnWaiting) -> None:
    """The best comes first, so that ASHA has something to compare with.

    A thread reports the epochs, as in real trials: Tune cannot end the work by ending that thread.
    """
    pause = 0.5 * (3 - trial.job.seed)
    reporter = threading.Thread(target=report_epochs, args=(trial, on_epoch, pause), daemon=True)
    reporter.start()
    time.sleep((EPOCHS + 1) * pause)
    reporter.join()


def outcomes(trials: list[Trial] | Searcher, folder: Path, **options: object) -> dict[int, Outcome]:
    ended: dict[int, Outcome] = {}

    def on_outcome(trial: Trial, outcome: Outcome) -> None:
        assert trial.job.seed not in ended, "each trial is reported once"
        ended[trial.job.seed] = outcome

    run_trials(
        trials,
        slots=1,
        storage=folder / "tune",
        on_outcome=on_outcome,
        on_waiting=lambda seconds, lack: None,
        **options,  # type: ignore[arg-type]
    )
    assert not (folder / "tune").exists()
    return ended


def test_a_trial_that_fails_is_reported_with_its_reason_and_ends_no_other(tmp_path: Path) -> None:
    ended = outcomes([trial(n, tmp_path) for n in range(3)], tmp_path, work=fail_the_second)
    assert [ended[n].status for n in range(3)] == ["finished", "failed", "finished"]
    assert ended[1].reason == "tuning: the loss is nan at epoch 1, step 3"
    assert [entry["epoch"] for entry in ended[2].entries] == list(range(1, EPOCHS + 1))


def test_a_trial_whose_driver_dies_starts_again(tmp_path: Path) -> None:
    ended = outcomes([trial(n, tmp_path) for n in range(2)], tmp_path, work=die_once)
    assert [ended[n].status for n in range(2)] == ["finished", "finished"]
    assert len(ended[0].entries) == EPOCHS


def test_asha_stops_trials_that_fall_behind_those_it_has_seen(tmp_path: Path) -> None:
    asha = ASHA(grace=2, reduction=2)
    alone = outcomes([trial(2, tmp_path)], tmp_path, work=slow_if_bad, asha=asha)
    assert alone[2].status == "finished", "there is nothing to fall behind"
    known = [[30.0 + epoch for epoch in range(1, EPOCHS + 1)]]
    others = [trial(n, tmp_path) for n in (2, 1)]
    ended = outcomes(others, tmp_path, work=slow_if_bad, asha=asha, known=known)
    assert [ended[n].status for n in (2, 1)] == ["stopped", "stopped"]
    assert all(len(outcome.entries) < EPOCHS for outcome in ended.values())
    # Stopped trials hold no slot that the next ones need.
    again = outcomes(others, tmp_path, work=at_once, asha=None)
    assert [again[n].status for n in (2, 1)] == ["finished", "finished"]


@pytest.mark.slow
def test_optuna_proposes_points_after_the_results_of_others(tmp_path: Path) -> None:
    settings = validate(
        SweepSettings,
        {
            "space": {
                "prompts.depth": {"choice": [0, 1, 2, 3]},
                "tuning.lr": {"loguniform": [0.01, 1]},
            },
            "search": "optuna",
            "samples": 8,
        },
        "sweep",
    )

    def search(earlier: list[Fields]) -> tuple[list[Fields], dict[int, Outcome]]:
        proposed: list[Fields] = []

        def plan(fields: Fields) -> Trial:
            proposed.append(fields)
            return replace(trial(len(proposed), tmp_path), fields=fields)

        def known(trial: Trial) -> float | None:
            return 7.0 if trial.fields["prompts.depth"] == 0 else None

        searcher = ProposedTrials(settings, plan, known, earlier)
        return proposed, outcomes(searcher, tmp_path, work=at_once)

    proposed, ended = search([])
    assert len(proposed) == 8
    assert all(
        set(fields) == set(settings.space) and 0.01 <= fields["tuning.lr"] <= 1
        for fields in proposed
    )
    ran = [n for n, fields in enumerate(proposed, start=1) if fields["prompts.depth"] != 0]
    assert sorted(ended) == ran, "known points do not run"
    assert {outcome.status for outcome in ended.values()} == {"finished"}
    # Earlier proposals count if they lie in the space and their outcome is known.
    earlier = [
        {"prompts.depth": depth, "tuning.lr": rate}
        for depth, rate in ((0, 0.5), (0, 5.0), (2, 0.5))
    ]
    proposed, ended = search(earlier)
    assert proposed[:2] == [earlier[0], earlier[2]]
    assert len(proposed) == 2 + 7
