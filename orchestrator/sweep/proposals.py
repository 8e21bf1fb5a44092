"""Points that Optuna proposes one after another, each after the results of earlier ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import ray.tune
from ray.tune.search import Searcher

from orchestrator.errors import InputError
from orchestrator.sweep.settings import Axis, SweepSettings
from orchestrator.sweep.space import Fields
from prompt_tuning.storage import canonical_json
from workers.stage import Stage
from workers.tuning.trials import Trial, as_config


class ProposedTrials(Searcher):
    """A searcher for Tune that plans the trial of each point which Optuna proposes.

    Some points need no trial. Optuna gets the result at once if the trial has run before, later if
    the same trial is running, and a failure if the config of the point is invalid.
    """

    def __init__(
        self,
        settings: SweepSettings,
        plan: Callable[[Fields], Trial],
        known: Callable[[Trial], float | None],
        earlier: Sequence[Fields],
    ) -> None:
        """`plan`: makes the trial of a point. `known`: its objective, if it has run before.
        `earlier`: points that were proposed to earlier commands; they count as samples."""
        from ray.tune.search.optuna import OptunaSearch

        super().__init__(metric="objective", mode="max")
        self._plan, self._known = plan, known
        results = self._results(settings, earlier)
        self.left = settings.samples - len(results)
        self._places = itertools.count()
        self._running: dict[Stage, list[str]] = {}
        self._stages: dict[str, Stage] = {}
        self._optuna = OptunaSearch(
            space={key: _distribution(axis) for key, axis in settings.space.items()},
            metric="objective",
            mode="max",
            seed=settings.seed,
            points_to_evaluate=[fields for fields, _ in results] or None,
            evaluated_rewards=[figure for _, figure in results] or None,
        )

    def _results(
        self, settings: SweepSettings, earlier: Sequence[Fields]
    ) -> list[tuple[Fields, float]]:
        """The earlier points that lie in the space, with their objectives."""
        results = {}
        for fields in earlier:
            if set(fields) == set(settings.space) and all(
                settings.space[key].has(value) for key, value in fields.items()
            ):
                figure = self._known(self._plan(fields))
                if figure is not None:
                    results[canonical_json(fields)] = (fields, figure)
        return list(results.values())[: settings.samples]

    def suggest(self, trial_id: str) -> Any:
        """The next point that must run, in the form of `as_config`."""
        while self.left > 0:
            self.left -= 1
            name = f"{trial_id}-{self.left}"
            fields = self._optuna.suggest(name)
            assert fields is not None
            try:
                trial = self._plan(fields)
            except InputError:
                self._optuna.on_trial_complete(name, error=True)
                continue
            figure = self._known(trial)
            if figure is not None:
                self._optuna.on_trial_complete(name, {"objective": figure})
            elif trial.stage in self._running:
                self._running[trial.stage].append(name)
            else:
                self._running[trial.stage] = [name]
                self._stages[trial_id] = trial.stage
                return as_config(trial, next(self._places))
        return Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass the result of a point on to Optuna; a trial without an objective has failed."""
        failed = error or not result or "objective" not in result
        for name in self._running.pop(self._stages.pop(trial_id)):
            self._optuna.on_trial_complete(name, None if failed else result, failed)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep resumes from the records of its trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, because nothing is saved."""


def _distribution(axis: Axis) -> Any:
    if axis.choice is not None:
        return ray.tune.choice(list(axis.choice))
    if axis.uniform is not None:
        return ray.tune.uniform(*axis.uniform)
    assert axis.loguniform is not None
    return ray.tune.loguniform(*axis.loguniform)
