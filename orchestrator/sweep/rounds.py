"""The two rounds of a sweep: one seed of every point, then more seeds of those that finished."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from rich.console import Console

from orchestrator.cluster.connect import connect
from orchestrator.console import StageProgress
from orchestrator.plan.knowledge import check_captions
from orchestrator.runs.curves import new_curves
from orchestrator.runs.stage_work import report_waiting
from orchestrator.stages.evaluation import selecting_half
from orchestrator.stages.images import read_images
from orchestrator.stages.tuning import RAY_STORAGE, tuning_job
from orchestrator.sweep.plan import Point, SweepPlan
from orchestrator.sweep.proposals import ProposedTrials
from orchestrator.sweep.records import TrialRecords
from orchestrator.sweep.space import Fields
from prompt_tuning.backbones import load_vlm
from prompt_tuning.backbones.base import Geometry, VLMSettings
from prompt_tuning.evaluation.selection import SelectingHalf
from workers.stage import Stage
from workers.tuning.job import read_classes
from workers.tuning.trials import (
    Outcome,
    Trial,
    Work,
    curve,
    objective,
    run_trials,
    tune_prompts,
)

_TUNE_STORAGE = ".tune"


def run_rounds(
    plan: SweepPlan, records: TrialRecords, console: Console, work: Work = tune_prompts
) -> set[Stage]:
    """Tune what has not been tuned yet, record how each trial ended, return the stages that ran.

    ASHA compares points by their first seed. The points that finish it are tuned with the other
    seeds too. So is the default, even if ASHA stopped it, because the best is compared with it.

    Raises InputError if there are too few captions, or the selection images show no category.
    """
    rounds = _Rounds(plan, records, console, work)
    first = plan.seeds[0]
    if plan.settings.search == "optuna":
        rounds.propose(first)
    else:
        rounds.run([(point, first) for point in plan.points], early_stop=True)
    remaining = [point for point in plan.points if rounds.finished(point, first)]
    if plan.default not in remaining and not rounds.failed(plan.default, first):
        remaining.append(plan.default)
    rounds.run([(point, seed) for point in remaining for seed in plan.seeds], early_stop=False)
    return rounds.ran


class _Rounds:
    """Runs trials; keeps what they share, and which of them ran and failed."""

    def __init__(
        self, plan: SweepPlan, records: TrialRecords, console: Console, work: Work
    ) -> None:
        self._plan, self._records, self._console, self._work = plan, records, console, work
        self._storage = plan.run_folder / RAY_STORAGE / plan.measured_on
        self._halves: dict[Stage | None, SelectingHalf] = {}
        self._checked: set[tuple[Stage, float]] = set()
        self._geometries: dict[VLMSettings, Geometry] = {}
        self._points: dict[Stage, tuple[Point, int]] = {}
        self._failed: set[Stage] = set()
        self.ran: set[Stage] = set()

    def finished(self, point: Point, seed: int) -> bool:
        """Whether a seed of a point has been tuned to its end."""
        outcome = self._records.find(point.plan.tuning[seed])
        return outcome is not None and outcome.status == "finished"

    def failed(self, point: Point, seed: int) -> bool:
        """Whether a seed of a point has failed in this command (the next command tries again)."""
        return point.plan.tuning[seed] in self._failed

    def run(self, seeds: Iterable[tuple[Point, int]], early_stop: bool) -> None:
        """Tune those of the seeds whose outcome is not known yet."""
        trials = {point.plan.tuning[seed]: self._trial(point, seed) for point, seed in seeds}
        enough = ("finished", "stopped") if early_stop else ("finished",)
        todo = [trial for trial in trials.values() if self._known(trial, enough) is None]
        if todo:
            self._run(todo, early_stop)

    def propose(self, seed: int) -> None:
        """Tune one seed of the default, and then of each point that Optuna proposes.

        Optuna first gets the results of the points that it proposed to earlier commands.
        """
        self.run([(self._plan.default, seed)], early_stop=True)

        def planned(fields: Fields) -> Trial:
            return self._trial(self._plan.add(fields), seed)

        def known(trial: Trial) -> float | None:
            outcome = self._known(trial, ("finished", "stopped"))
            return self._objective(outcome) if outcome and outcome.entries else None

        settings = self._plan.settings
        searcher = ProposedTrials(settings, planned, known, self._records.fields())
        if searcher.left:
            self._run(searcher, early_stop=True)

    def _trial(self, point: Point, seed: int) -> Trial:
        plan, stage = point.plan, point.plan.tuning[seed]
        self._points[stage] = (point, seed)
        captions = (plan.captions, plan.config.captions.held_out)
        if captions not in self._checked:
            check_captions(plan.knowledge)
            self._checked.add(captions)
        labelled = plan.labelled
        if labelled.select and labelled.features not in self._halves:
            self._halves[labelled.features] = selecting_half(labelled, read_images(labelled))
        return Trial(
            fields={**point.fields, "seed": seed},
            stage=stage,
            job=tuning_job(plan, seed, self._storage, self._halves.get(labelled.features)),
            storage=self._storage,
            resources=plan.share.resources,
        )

    def _known(self, trial: Trial, enough: tuple[str, ...]) -> Outcome | None:
        """The outcome of a trial if it is one of `enough`; None if the trial must run."""
        outcome = self._records.find(trial.stage)
        if outcome is None or outcome.status not in enough:
            return None
        if not self._records.has(trial.stage):
            self._keep(trial, outcome)
        return outcome

    def _objective(self, outcome: Outcome) -> float:
        return objective(outcome.entries, self._plan.on_images)

    def _keep(self, trial: Trial, outcome: Outcome) -> None:
        half, job = trial.job.selecting, trial.job
        if half and outcome.status == "finished" and "selecting_map" not in outcome.entries[-1]:
            # A run that does not select on these images has tuned it.
            if job.vlm not in self._geometries:
                self._geometries[job.vlm] = load_vlm(job.vlm, cache=job.cache).geometry
            outcome.entries[-1]["selecting_map"] = half.fused_map(
                half.load(),
                read_classes(trial.stage.folder),
                job.scoring.resolve(self._geometries[job.vlm]),
                job.scoring.fusion,
            )
        point, seed = self._points[trial.stage]
        self._records.add(trial.stage, point.fields, outcome)
        with new_curves(self._events_folder(point, seed)) as add_epoch:
            for entry in outcome.entries:
                add_epoch(entry)

    def _events_folder(self, point: Point, seed: int) -> Path:
        name = re.sub(r"[^A-Za-z0-9=.,_-]+", "_", f"{point.description},seed={seed}")[:150]
        key = point.plan.tuning[seed].key
        return self._plan.run_folder / "tensorboard" / f"{name}-{key[:6]}"

    def _run(self, trials: list[Trial] | ProposedTrials, early_stop: bool) -> None:
        plan, settings, resources = self._plan, self._plan.settings, self._plan.resources
        connect(resources.cpus, resources.gpus)
        default = plan.default.plan
        count = trials.left if isinstance(trials, ProposedTrials) else len(trials)
        best: list[float] = []
        with StageProgress(self._console, "trials", count) as progress:

            def on_outcome(trial: Trial, outcome: Outcome) -> None:
                self._keep(trial, outcome)
                self.ran.add(trial.stage)
                if outcome.status == "failed":
                    self._failed.add(trial.stage)
                    point, seed = self._points[trial.stage]
                    self._console.print(
                        f"failed: {point.description}, seed {seed}: {outcome.reason}",
                        style="yellow",
                        markup=False,
                    )
                elif outcome.entries:
                    best[:] = [max([*best, self._objective(outcome)])]
                progress.advance(1, f"best {best[0]:.2f}" if best else "")

            run_trials(
                trials,
                plan.slots,
                plan.run_folder / _TUNE_STORAGE,
                on_outcome,
                partial(report_waiting, self._console, default.share, default.config.tuning),
                asha=settings.asha if early_stop else None,
                known=self._first_seeds() if early_stop else [],
                trackers=settings.trackers,
                work=self._work,
            )

    def _first_seeds(self) -> list[list[float]]:
        """The curves of the points whose first seed has run, in the order in which they ended."""
        stages = {point.plan.tuning[self._plan.seeds[0]] for point in self._plan.points}
        outcomes = [self._records.find(s) for s in sorted(stages, key=self._records.place)]
        curves = [curve(outcome.entries, self._plan.on_images) for outcome in outcomes if outcome]
        return [values for values in curves if values]
