"""The trials of a sweep: Ray Tune decides which one runs when, Ray Train tunes each.

Tune's own state is deleted after each sweep. Finished trials are stages in the cache, and the
caller records how the others ended, so repeating, widening and resuming a sweep are the same thing.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import ray
import ray.tune
from ray.actor import ActorHandle
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from workers.failure import in_one_line
from workers.stage import Stage, run_stage
from workers.tuning.driver import SECONDS_BETWEEN_WAITS, tune
from workers.tuning.job import Lack, OnEpoch, OnWaiting, TuningJob, read_history
from workers.tuning.slots import Slots
from workers.tuning.trial_settings import ASHA, Tracker

Entry = dict[str, float]

# Drivers of trials run on the head node, so that the loss of another node costs only workers.
_ON_HEAD_NODE = {"node:__internal_head__": 0.001}
# This many trials start their processes and load while others tune, so that no slot stays free.
_MOST_AHEAD = 2
_DRIVER_DEATHS_ALLOWED = 2
_MOST_CALLS_WAITING = 100_000
# The fields of an `Entry`, among the other fields of a report to Tune.
_ENTRY_FIELDS = ("epoch", "loss", "held_out_loss", "held_out_map", "selecting_map", "started", "at")


@dataclass(frozen=True)
class Trial:
    """One seed of one point: the stage that it fills, and the job that fills it.

    `fields`: the swept fields and the seed, for trackers. `resources`: of each worker. `place`: in
    the order in which the trials of a sweep load, from 0.
    """

    fields: dict[str, Any]
    stage: Stage
    job: TuningJob
    storage: Path
    resources: dict[str, float]
    place: int = 0


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial; `entries` has one entry per epoch, as `tune` passes them on."""

    status: Literal["finished", "stopped", "failed"]
    entries: list[Entry]
    reason: str = ""


# Fills the stage of a trial: `tune_prompts`, or a stub in tests and benchmarks.
Work = Callable[[Trial, OnEpoch, OnWaiting], None]
OnOutcome = Callable[[Trial, Outcome], None]


def as_config(trial: Trial, place: int) -> dict[str, Any]:
    """A trial in the form that Tune passes on: by reference, with the fields that trackers show."""
    return {"point": {"trial": ray.put(replace(trial, place=place)), **trial.fields}}


def objective(entries: Sequence[Entry], on_images: bool) -> float:
    """The mAP (0-100) of the best epoch's prompts, by which trials are ranked.

    `on_images`: whether it is measured on the images that select, or else on held-out captions.
    """
    if on_images:
        return entries[-1]["selecting_map"]
    return min(entries, key=lambda entry: entry["held_out_loss"])["held_out_map"]


def curve(entries: Sequence[Entry], on_images: bool) -> list[float]:
    """The objective after each epoch; empty if it was not measured after each."""
    if on_images and not all("selecting_map" in entry for entry in entries):
        return []
    return [objective(entries[:n], on_images) for n in range(1, len(entries) + 1)]


def tune_prompts(trial: Trial, on_epoch: OnEpoch, on_waiting: OnWaiting) -> None:
    """Tune a trial's seed in its own Ray Train workers, unless its stage is done."""
    name = trial.stage.key

    def work(staging: Path) -> None:
        (tuned,) = tune(
            [trial.job],
            trial.storage,
            name,
            trial.resources,
            lambda _, entry: on_epoch(entry),
            on_waiting,
        )
        tuned.write(staging)

    run_stage(trial.stage, work)
    shutil.rmtree(trial.storage / name, ignore_errors=True)


def run_trials(
    trials: Sequence[Trial] | Searcher,
    slots: int,
    storage: Path,
    on_outcome: OnOutcome,
    on_waiting: OnWaiting,
    asha: ASHA | None = None,
    known: Sequence[Sequence[float]] = (),
    trackers: Sequence[Tracker] = (),
    work: Work = tune_prompts,
) -> None:
    """Run trials, `slots` at a time, and call `on_outcome` as soon as one has ended.

    When a trial fails, the others continue. When its driver dies, it resumes from its checkpoint.

    Args:
        trials: the trials, or a searcher that suggests each in the form of `as_config`, with the
            places 0, 1, 2 and so on.
        storage: a folder for Tune's own files, which is removed at the end.
        on_waiting: called as by `tune`, while no trial tunes.
        asha: stops trials early; None lets all of them finish.
        known: the objective by epoch of earlier trials, which ASHA compares the new ones with.
        work: what each trial does.
    """
    # Tune's progress table, loggers and Ctrl-C handler conflict with ours, and not every report has
    # an objective.
    os.environ |= {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    }
    at_once = slots + min(slots, _MOST_AHEAD)
    actor: Any = ray.remote(Slots).options(
        num_cpus=0, resources=_ON_HEAD_NODE, max_concurrency=_MOST_CALLS_WAITING
    )
    slots_actor = actor.remote(slots)
    searcher = trials if isinstance(trials, Searcher) else None
    space = {}
    if not isinstance(trials, Searcher):
        space["point"] = ray.tune.grid_search(
            [as_config(trial, place)["point"] for place, trial in enumerate(trials)]
        )
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(
            partial(_run_trial, work, slots_actor, slots / at_once),
            ray.tune.PlacementGroupFactory([_ON_HEAD_NODE]),
        ),
        param_space=space,
        tune_config=ray.tune.TuneConfig(
            num_samples=-1 if searcher else 1,
            search_alg=searcher,
            scheduler=_scheduler(asha, known) if asha else FIFOScheduler(),
            max_concurrent_trials=at_once,
            # The actor of a stopped trial cannot be used again.
            reuse_actors=asha is None,
        ),
        run_config=ray.tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            verbose=0,
            callbacks=[_Listener(on_outcome, on_waiting, slots_actor), *map(_tracking, trackers)],
            failure_config=ray.tune.FailureConfig(max_failures=_DRIVER_DEATHS_ALLOWED),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _run_trial(work: Work, slots: ActorHandle, share: float, config: dict[str, Any]) -> None:
    """Run one trial from start to end, and report each epoch to Tune.

    `share`: the share of its CPUs that each worker requests, so that the workers of trials that
    load early fit too. Workers with a GPU keep their request: only their drivers start early.
    """
    trial: Trial = ray.get(config["point"]["trial"])
    needs = dict(trial.resources)
    if not needs["GPU"]:
        needs["CPU"] *= share
    trial = replace(trial, resources=needs, job=replace(trial.job, slots=slots))
    # An earlier driver of this trial may have died while it held a slot.
    ray.get(slots.release.remote(trial.job.name))
    ray.get(slots.wait_to_load.remote(trial.job.name, trial.place))
    on_images = trial.job.selecting is not None
    entries: list[Entry] = []

    def on_epoch(entry: Entry) -> None:
        entries.append(entry)
        # The last epoch is reported with the outcome: ASHA must not stop a trial that has finished.
        if len(entries) < trial.job.tuning.epochs:
            ray.tune.report({**entry, "objective": objective(entries, on_images)})

    try:
        work(trial, on_epoch, lambda *waiting: ray.tune.report({"waiting": waiting}))
    except Exception as error:
        reason = in_one_line(error).removeprefix("RuntimeError: ")
        ray.tune.report({"outcome": Outcome("failed", entries, reason)})
        return
    if not entries:  # another command has filled the stage meanwhile
        ray.tune.report({"outcome": Outcome("finished", read_history(trial.stage.folder))})
        return
    figures = {**entries[-1], "objective": objective(entries, on_images)}
    ray.tune.report({"outcome": Outcome("finished", entries), **figures})


def _scheduler(asha: ASHA, known: Sequence[Sequence[float]]) -> TrialScheduler:
    """An ASHA scheduler that has already seen the known trials."""
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric="objective",
        mode="max",
        max_t=1000,
        grace_period=asha.grace,
        reduction_factor=asha.reduction,
        stop_last_trials=False,
    )
    nobody: Any = None  # ASHA never uses its controller
    for number, values in enumerate(known):
        trial: Any = SimpleNamespace(trial_id=f"known-{number}")
        scheduler.on_trial_add(nobody, trial)
        for epoch, value in enumerate(values, start=1):
            scheduler.on_trial_result(nobody, trial, {"epoch": epoch, "objective": value})
    return scheduler


def _tracking(tracker: Tracker) -> ray.tune.Callback:
    """Tune's callback for an experiment tracker, which is configured by environment variables."""
    if tracker == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        return MLflowLoggerCallback(experiment_name="datafree")
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(project="datafree")


class _Listener(ray.tune.Callback):
    """Collects the entries of trials, and passes on the outcome of each trial."""

    def __init__(self, on_outcome: OnOutcome, on_waiting: OnWaiting, slots: ActorHandle) -> None:
        self._on_outcome, self._on_waiting, self._slots = on_outcome, on_waiting, slots
        self._entries: dict[str, dict[float, Entry]] = {}
        # By trial: the time of its last report, the seconds that it has waited, and the reason.
        self._waiting: dict[str, tuple[float, tuple[float, Lack]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune saves callbacks to restore a sweep, but our sweeps resume from records."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        entry = {name: result[name] for name in _ENTRY_FIELDS if name in result}
        if entry:
            self._entries.setdefault(trial.trial_id, {})[entry["epoch"]] = entry
        if "waiting" in result:
            now = time.time()
            self._waiting[trial.trial_id] = (now, result["waiting"])
            since = now - 1.5 * SECONDS_BETWEEN_WAITS
            recent = {name: wait for name, (at, wait) in self._waiting.items() if at > since}
            if all(other.trial_id in recent for other in trials if other.status == "RUNNING"):
                self._on_waiting(*min(recent.values()))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        stopped = Outcome("stopped", list(self._entries.pop(trial.trial_id, {}).values()))
        self._ended(trial, trial.last_result.get("outcome", stopped))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = in_one_line(trial.get_error() or RuntimeError("its driver died"))
        entries = list(self._entries.pop(trial.trial_id, {}).values())
        self._ended(trial, Outcome("failed", entries, reason))

    def _ended(self, trial: Any, outcome: Outcome) -> None:
        ended: Trial = ray.get(trial.config["point"]["trial"])
        self._slots.end.remote(ended.job.name, ended.place)
        self._on_outcome(ended, outcome)
