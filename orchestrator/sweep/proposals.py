"""Points that Optuna proposes one after the other, each after the results of others."""

from __future__ import annotations

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
    """A searcher for Tune whose points become trials in the driver, where they can be planned.

    A point whose trial has been run before is told to Optuna at once, one whose trial is running
    when that has ended, and one that no config can have as a failure: none of them runs.
    """

    def __init__(
        self,
        settings: SweepSettings,
        plan: Callable[[Fields], Trial],
        known: Callable[[Trial], float | None],
        earlier: Sequence[Fields],
    ) -> None:
        """`plan`: the trial of a point. `known`: what came of it, where that is known. `earlier`:
        points that were proposed before; they count as samples."""
        from ray.tune.search.optuna import OptunaSearch

        super().__init__(metric="objective", mode="max")
        self._plan, self._known = plan, known
        told = self._told(settings, earlier)
        self.left = settings.samples - len(told)
        self._running: dict[Stage, list[str]] = {}
        self._stages: dict[str, Stage] = {}
        self._optuna = OptunaSearch(
            space={key: _distribution(axis) for key, axis in settings.space.items()},
            metric="objective",
            mode="max",
            seed=settings.seed,
            points_to_evaluate=[fields for fields, _ in told] or None,
            evaluated_rewards=[figure for _, figure in told] or None,
        )

    def _told(
        self, settings: SweepSettings, earlier: Sequence[Fields]
    ) -> list[tuple[Fields, float]]:
        """Of the earlier points those that the space has, with what came of them."""
        told = {}
        for fields in earlier:
            if set(fields) == set(settings.space) and all(
                settings.space[key].has(value) for key, value in fields.items()
            ):
                figure = self._known(self._plan(fields))
                if figure is not None:
                    told[canonical_json(fields)] = (fields, figure)
        return list(told.values())[: settings.samples]

    def suggest(self, trial_id: str) -> Any:
        """The next point that has to be run, by `as_config`."""
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
                return as_config(trial)
        return Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass on what came of a point; a trial without an objective is an error to Optuna."""
        failed = error or not result or "objective" not in result
        for name in self._running.pop(self._stages.pop(trial_id)):
            self._optuna.on_trial_complete(name, None if failed else result, failed)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the records of trials are what a sweep goes on from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as nothing is saved."""


def _distribution(axis: Axis) -> Any:
    if axis.choice is not None:
        return ray.tune.choice(list(axis.choice))
    if axis.uniform is not None:
        return ray.tune.uniform(*axis.uniform)
    assert axis.loguniform is not None
    return ray.tune.loguniform(*axis.loguniform)
