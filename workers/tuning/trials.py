"""The trials of a sweep: Ray Tune decides which one runs when, Ray Train tunes each.

Tune's own state is thrown away after each sweep. What is known of trials is in the stages that they
have finished and in what the caller keeps of the others, so that repeating, widening and resuming a
sweep are the same thing.
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
from typing import Annotated, Any, Literal

import ray
import ray.tune
from pydantic import Field
from ray.actor import ActorHandle
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from prompt_tuning.settings import Settings
from workers.failure import in_one_line
from workers.stage import Stage, run_stage
from workers.tuning.driver import SECONDS_BETWEEN_WAITS, tune
from workers.tuning.job import Lack, OnEpoch, OnWaiting, TuningJob, read_history
from workers.tuning.slots import Slots

Tracker = Literal["mlflow", "wandb"]
Entry = dict[str, float]

# What drives a trial takes no CPU. It belongs on the head node: nodes that leave take workers only.
_ON_HEAD_NODE = {"node:__internal_head__": 0.001}
# As many trials start their processes and load while others tune, so that they wait for a slot, not
# it for them.
_MOST_AHEAD = 2
_DRIVER_DEATHS_ALLOWED = 2
_MOST_WAITING = 100_000
# What an entry may have, so that it can be told apart from what else Tune is told.
_ENTRY = ("epoch", "loss", "held_out_loss", "held_out_map", "selecting_map", "started", "at")


class Halving(Settings):
    """Asynchronous successive halving: after `grace` epochs, and each `reduction` times as many,
    a trial goes on only if it is in the best 1/`reduction` of those that have come so far."""

    grace: Annotated[int, Field(ge=1, le=1000)] = 1
    reduction: Annotated[float, Field(gt=1, le=100)] = 3


@dataclass(frozen=True)
class Trial:
    """One seed of one point: the stage that it fills, and what with.

    `fields`: the swept ones and the seed, for experiment trackers.
    """

    fields: dict[str, Any]
    stage: Stage
    job: TuningJob
    storage: Path
    resources: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `entries` has an entry an epoch, as `tune` tells them."""

    status: Literal["finished", "stopped", "failed"]
    entries: list[Entry]
    reason: str = ""


# Fills the stage of a trial; the real one is `tune_prompts`.
Work = Callable[[Trial, OnEpoch, OnWaiting], None]
OnOutcome = Callable[[Trial, Outcome], None]


def as_config(trial: Trial) -> dict[str, Any]:
    """A trial as Tune passes it on: by reference, beside the fields that trackers show."""
    return {"point": {"trial": ray.put(trial), **trial.fields}}


def _of_config(config: dict[str, Any]) -> Trial:
    trial: Trial = ray.get(config["point"]["trial"])
    return trial


def objective(entries: Sequence[Entry], on_images: bool) -> float:
    """What trials are compared by after these epochs: mAP, 0-100, of the prompts kept so far.

    On the images that select, or else on held-out captions.
    """
    if on_images:
        return entries[-1]["selecting_map"]
    return min(entries, key=lambda entry: entry["held_out_loss"])["held_out_map"]


def curve(entries: Sequence[Entry], on_images: bool) -> list[float]:
    """The objective after each epoch; none where it was not told after each."""
    if on_images and not all("selecting_map" in entry for entry in entries):
        return []
    return [objective(entries[:n], on_images) for n in range(1, len(entries) + 1)]


def tune_prompts(trial: Trial, on_epoch: OnEpoch, on_waiting: OnWaiting) -> None:
    """Tune a trial's seed in Ray Train workers of its own, unless its stage is done."""
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
    halving: Halving | None = None,
    known: Sequence[Sequence[float]] = (),
    trackers: Sequence[Tracker] = (),
    work: Work = tune_prompts,
) -> None:
    """Run trials, `slots` at a time, and tell how each ended as soon as it has.

    A trial that fails is told and does not end the others; one whose driver dies starts again, from
    its last checkpoint.

    Args:
        trials: those to run, or a searcher that gives each by `as_config` until there are no more.
        storage: a folder for Tune's own files, which are removed at the end.
        on_waiting: called as by `tune`, while no trial tunes.
        known: of trials that halving has seen before, in their order, the objective by epoch.
        work: what each trial does.
    """
    # Its progress table, its loggers and its handler of Ctrl-C would stand in the way of ours, and
    # not every report has an objective.
    os.environ |= {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    }
    ahead = min(slots, _MOST_AHEAD)
    actor = ray.remote(Slots).options(
        num_cpus=0, resources=_ON_HEAD_NODE, max_concurrency=_MOST_WAITING
    )
    gate: Any = actor.remote(slots)
    searcher = trials if isinstance(trials, Searcher) else None
    space = {}
    if not isinstance(trials, Searcher):
        space["point"] = ray.tune.grid_search([as_config(trial)["point"] for trial in trials])
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(
            partial(_run_trial, work, gate, slots / (slots + ahead)),
            ray.tune.PlacementGroupFactory([_ON_HEAD_NODE]),
        ),
        param_space=space,
        tune_config=ray.tune.TuneConfig(
            num_samples=-1 if searcher else 1,
            search_alg=searcher,
            scheduler=_scheduler(halving, known) if halving else FIFOScheduler(),
            max_concurrent_trials=slots + ahead,
            # An actor whose trial was stopped in the middle cannot be used again.
            reuse_actors=halving is None,
        ),
        run_config=ray.tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            verbose=0,
            callbacks=[_Listener(on_outcome, on_waiting, gate), *map(_tracking, trackers)],
            failure_config=ray.tune.FailureConfig(max_failures=_DRIVER_DEATHS_ALLOWED),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _run_trial(work: Work, gate: ActorHandle, share: float, config: dict[str, Any]) -> None:
    """What Tune runs: a trial from its start to its end, telling Tune of each epoch.

    `share`: of its CPUs a worker asks for so much less that those fit too who load ahead. A GPU
    cannot be shared so; there only the drivers are ahead.
    """
    trial = _of_config(config)
    needs = trial.resources
    if not needs["GPU"]:
        needs = {**needs, "CPU": share * needs["CPU"]}
    trial = replace(trial, resources=needs, job=replace(trial.job, slots=gate))
    # Of a driver that has died, this one goes on with its trial.
    ray.get(gate.leave.remote(trial.job.name))
    ray.get(gate.load.remote(trial.job.name))
    on_images = trial.job.selecting is not None
    entries: list[Entry] = []

    def on_epoch(entry: Entry) -> None:
        entries.append(entry)
        # The last one is told with the end: halving must not stop what is about to be done.
        if len(entries) < trial.job.tuning.epochs:
            ray.tune.report({**entry, "objective": objective(entries, on_images)})

    try:
        work(trial, on_epoch, lambda *waiting: ray.tune.report({"waiting": waiting}))
    except Exception as error:
        reason = in_one_line(error).removeprefix("RuntimeError: ")
        ray.tune.report({"outcome": Outcome("failed", entries, reason)})
        return
    if not entries:  # somebody else has filled the stage meanwhile
        ray.tune.report({"outcome": Outcome("finished", read_history(trial.stage.folder))})
        return
    figures = {**entries[-1], "objective": objective(entries, on_images)}
    ray.tune.report({"outcome": Outcome("finished", entries), **figures})


def _scheduler(halving: Halving, known: Sequence[Sequence[float]]) -> TrialScheduler:
    """ASHA that has already seen the known trials."""
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric="objective",
        mode="max",
        max_t=1000,
        grace_period=halving.grace,
        reduction_factor=halving.reduction,
        stop_last_trials=False,
    )
    nobody: Any = None  # ASHA does not look at its controller
    for number, curve in enumerate(known):
        trial: Any = SimpleNamespace(trial_id=f"known-{number}")
        scheduler.on_trial_add(nobody, trial)
        for epoch, value in enumerate(curve, start=1):
            scheduler.on_trial_result(nobody, trial, {"epoch": epoch, "objective": value})
    return scheduler


def _tracking(tracker: Tracker) -> ray.tune.Callback:
    """Tune's own callback of an experiment tracker; its settings are its environment variables."""
    if tracker == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        return MLflowLoggerCallback(experiment_name="datafree")
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(project="datafree")


class _Listener(ray.tune.Callback):
    """Hears what trials report, and tells the driver how each of them ended."""

    def __init__(self, on_outcome: OnOutcome, on_waiting: OnWaiting, gate: ActorHandle) -> None:
        self._on_outcome, self._on_waiting, self._gate = on_outcome, on_waiting, gate
        self._entries: dict[str, dict[float, Entry]] = {}
        # When told, for how long and for what.
        self._waiting: dict[str, tuple[float, tuple[float, Lack]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its callbacks to restore them, which is not how a sweep goes on."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        entry = {name: result[name] for name in _ENTRY if name in result}
        if entry:
            self._entries.setdefault(trial.trial_id, {})[entry["epoch"]] = entry
        if "waiting" in result:
            now = time.time()
            self._waiting[trial.trial_id] = (now, result["waiting"])
            recent = {
                name: waiting
                for name, (at, waiting) in self._waiting.items()
                if now - at < 1.5 * SECONDS_BETWEEN_WAITS
            }
            running = [other for other in trials if other.status == "RUNNING"]
            if all(other.trial_id in recent for other in running):
                self._on_waiting(*min(recent.values()))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        stopped = Outcome("stopped", list(self._entries.pop(trial.trial_id, {}).values()))
        self._ended(trial, trial.last_result.get("outcome", stopped))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = in_one_line(trial.get_error() or RuntimeError("its driver died"))
        entries = list(self._entries.pop(trial.trial_id, {}).values())
        self._ended(trial, Outcome("failed", entries, reason))

    def _ended(self, trial: Any, outcome: Outcome) -> None:
        of_sweep = _of_config(trial.config)
        self._gate.leave.remote(of_sweep.job.name)
        self._on_outcome(of_sweep, outcome)
