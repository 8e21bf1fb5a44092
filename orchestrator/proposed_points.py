"""Points that Optuna proposes one after the other, each after the results of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
import ray.tune
from ray.tune.search import Searcher

from orchestrator.search_space import Axis, Fields, SweepSettings
from workers.sweep_trials import Trial


class ProposedTrials(Searcher):
    """A searcher for Tune whose points become trials in the driver, where they can be planned.

    A trial that has been run before is told to Optuna at once, and does not run again.
    """

    def __init__(
        self,
        settings: SweepSettings,
        plan: Callable[[Fields], Trial],
        known: Callable[[Trial], float | None],
    ) -> None:
        """`plan`: the trial of a point. `known`: what came of it, where that is known."""
        from ray.tune.search.optuna import OptunaSearch

        super().__init__(metric="objective", mode="max")
        self._plan, self._known = plan, known
        self._left = settings.samples
        self._names: dict[str, str] = {}
        self._optuna = OptunaSearch(
            space={key: _distribution(axis) for key, axis in settings.space.items()},
            metric="objective",
            mode="max",
            seed=settings.seed,
        )

    def suggest(self, trial_id: str) -> Any:
        """The next point that has to be run, as `{"trial": …}`."""
        while self._left:
            self._left -= 1
            name = f"{trial_id}-{self._left}"
            fields = self._optuna.suggest(name)
            assert fields is not None
            trial = self._plan(fields)
            known = self._known(trial)
            if known is None:
                self._names[trial_id] = name
                return {"trial": ray.put(trial)}
            self._optuna.on_trial_complete(name, {"objective": known})
        return Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass on what came of a point; a trial without an objective is an error to Optuna."""
        name = self._names.pop(trial_id)
        failed = error or not result or "objective" not in result
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
