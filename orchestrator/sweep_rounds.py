"""The two rounds of a sweep: one seed of every point, then the other seeds of those that stayed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

from rich.console import Console

from orchestrator.cluster import connect
from orchestrator.curves import new_curves
from orchestrator.evaluation_stages import selecting_half
from orchestrator.progress import StageProgress
from orchestrator.proposed_points import ProposedTrials
from orchestrator.search_space import Fields
from orchestrator.sweep_plan import Point, SweepPlan
from orchestrator.trial_records import TrialRecords
from orchestrator.tuning_stages import RAY_STORAGE, check_captions, tell_of_waiting, tuning_job
from prompt_tuning.selection import SelectingHalf
from prompt_tuning.vlm import load_vlm
from workers.stages import Stage
from workers.sweep_trials import Outcome, Trial, curve, objective, run_trials
from workers.tuning_worker import read_classes

_TUNE_STORAGE = ".tune"


def run_rounds(plan: SweepPlan, records: TrialRecords, console: Console) -> None:
    """Tune what is not known yet, and keep how each trial ended.

    Halving compares points by their first seed. Those that it leaves are tuned with the others, and
    so is the default, which is never left unfinished, for the best is compared with it.
    """
    rounds = _Rounds(plan, records, console)
    first = plan.seeds[0]
    if plan.settings.search == "optuna":
        rounds.propose(first)
    else:
        rounds.run([(point, first) for point in plan.points], halve=True)
    stayed = [
        point
        for point in plan.points
        if point == plan.default or rounds.status(point, first) == "finished"
    ]
    rounds.run([(point, seed) for point in stayed for seed in plan.seeds], halve=False)


class _Rounds:
    def __init__(self, plan: SweepPlan, records: TrialRecords, console: Console) -> None:
        self._plan, self._records, self._console = plan, records, console
        self._halves: dict[Stage | None, SelectingHalf | None] = {}
        self._stages: dict[Stage, tuple[Point, int]] = {}
        self._failed: set[Stage] = set()  # now, so that it is not tried again at once

    def status(self, point: Point, seed: int) -> str | None:
        """How a seed of a point ended."""
        outcome = self._records.find(point.plan.tuning[seed])
        return outcome.status if outcome else None

    def run(self, seeds: Iterable[tuple[Point, int]], halve: bool) -> None:
        """Tune those seeds of points of which it is not known what comes of them."""
        trials = [self._trial(point, seed) for point, seed in seeds]
        todo = {
            trial.stage: trial
            for trial in trials
            if not self._known(trial, "stopped" if halve else "finished")
        }
        if todo:
            self._run(list(todo.values()), len(todo), halve)

    def propose(self, seed: int) -> None:
        """Tune one seed of the default, and then of each point that Optuna proposes."""
        self.run([(self._plan.default, seed)], halve=True)

        def planned(fields: Fields) -> Trial:
            return self._trial(self._plan.add(fields), seed)

        def known(trial: Trial) -> float | None:
            outcome = self._records.find(trial.stage) if self._known(trial, "stopped") else None
            return self._objective(outcome) if outcome else None

        settings = self._plan.settings
        self._run(ProposedTrials(settings, planned, known), settings.samples, halve=True)

    def _trial(self, point: Point, seed: int) -> Trial:
        stage, share = point.plan.tuning[seed], point.plan.share
        self._stages[stage] = (point, seed)
        features = point.plan.image_features
        if features not in self._halves:
            check_captions(point.plan)
            self._halves[features] = selecting_half(point.plan)
        return Trial(
            name=f"point-{point.number}-seed-{seed}",
            stage=stage,
            job=tuning_job(point.plan, seed, self._halves[features]),
            storage=self._plan.run_folder / RAY_STORAGE,
            resources=share.resources,
        )

    def _known(self, trial: Trial, enough: str) -> bool:
        """Whether a trial need not run; `enough`: how far it must have come."""
        if trial.stage in self._failed:
            return True
        outcome = self._records.find(trial.stage)
        if outcome is None or outcome.status not in ("finished", enough):
            return False
        if trial.job.selecting and "selecting_map" not in outcome.entries[-1]:
            self._keep(trial, outcome)
        return True

    def _objective(self, outcome: Outcome) -> float:
        return objective(outcome.entries, self._plan.default.plan.images_select)

    def _keep(self, trial: Trial, outcome: Outcome) -> None:
        half, job = trial.job.selecting, trial.job
        if half and outcome.status == "finished" and "selecting_map" not in outcome.entries[-1]:
            # Tuned by somebody who does not select on these images.
            geometry = job.scoring.resolve(load_vlm(job.vlm, cache=job.cache).geometry)
            outcome.entries[-1]["selecting_map"] = half.fused_map(
                half.load(), read_classes(trial.stage.folder), geometry, job.scoring.fusion
            )
        point, seed = self._stages[trial.stage]
        self._records.add(trial.stage, seed, outcome)
        run = re.sub(r"[^A-Za-z0-9=.,_-]+", "_", f"{point.told},seed={seed}")[:150]
        folder = self._plan.run_folder / "tensorboard" / f"{run}-{trial.stage.key[:6]}"
        with new_curves(folder) as add_epoch:
            for entry in outcome.entries:
                add_epoch(entry)

    def _run(self, trials: list[Trial] | ProposedTrials, count: int, halve: bool) -> None:
        plan, settings, resources = self._plan, self._plan.settings, self._plan.resources
        connect(resources.cpus, resources.gpus)
        best: list[float] = []
        with StageProgress(self._console, "trials", count) as progress:

            def on_outcome(trial: Trial, outcome: Outcome) -> None:
                self._keep(trial, outcome)
                if outcome.status == "failed":
                    self._failed.add(trial.stage)
                    point, seed = self._stages[trial.stage]
                    self._console.print(
                        f"failed: {point.told}, seed {seed}: {outcome.reason}",
                        style="yellow",
                        markup=False,
                    )
                elif outcome.entries:
                    best[:] = [max([*best, self._objective(outcome)])]
                progress.advance(1, f"best {best[0]:.2f}" if best else "")

            seen = [
                curve(outcome.entries, plan.default.plan.images_select)
                for outcome in self._records.in_order(plan.seeds[0])
            ]
            run_trials(
                trials,
                count,
                plan.slots,
                plan.run_folder / _TUNE_STORAGE,
                on_outcome,
                partial(
                    tell_of_waiting,
                    self._console,
                    plan.default.plan.share,
                    plan.default.plan.config.tuning.workers,
                ),
                halving=settings.asha if halve else None,
                known=[of_trial for of_trial in seen if of_trial],
                trackers=settings.trackers,
            )
