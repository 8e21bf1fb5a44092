"""The results of the points of a sweep, and which point is best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Literal

from orchestrator.sweep.plan import SweepPlan
from orchestrator.sweep.records import TrialRecords
from orchestrator.sweep.space import Fields
from workers.tuning.trials import Entry, Outcome, curve, objective


@dataclass(frozen=True)
class PointResult:
    """How the seeds of a point ended. All figures are mAP (0-100).

    `number`: 0 is the default, the config as written. `outcomes`: by seed, of the trials that ran.
    `seeds`: how many a finished point has. `on_images`: whether images rank the points, or text.
    """

    number: int
    fields: Fields
    outcomes: dict[int, Outcome]
    seeds: int
    on_images: bool

    @property
    def status(self) -> Literal["finished", "stopped", "failed"]:
        """ "finished" if all seeds are; otherwise the status of the first that is not."""
        unfinished = [o.status for o in self.outcomes.values() if o.status != "finished"]
        if len(self.outcomes) == self.seeds and not unfinished:
            return "finished"
        return unfinished[0] if unfinished else "stopped"

    @property
    def finished(self) -> bool:
        """Whether the point can be ranked."""
        return self.status == "finished"

    @property
    def reason(self) -> str:
        """Why the point failed, or ""."""
        return next((o.reason for o in self.outcomes.values() if o.reason), "")

    @property
    def epochs(self) -> int:
        """The most epochs that any of its seeds was tuned for."""
        return max((len(o.entries) for o in self.outcomes.values()), default=0)

    @property
    def objective(self) -> list[float]:
        """What each finished seed is ranked by."""
        return [objective(entries, self.on_images) for entries in self._finished_seeds]

    @property
    def text_map(self) -> list[float]:
        """mAP of each finished seed on held-out captions."""
        return [objective(entries, False) for entries in self._finished_seeds]

    @property
    def level(self) -> float | None:
        """The mean objective; of a stopped point that of its last values, if it has any."""
        if self.finished:
            return fmean(self.objective)
        last = [known[-1] for known in map(finite, self.curves) if known]
        return fmean(last) if last and self.status == "stopped" else None

    @cached_property
    def curves(self) -> list[list[float]]:
        """The objective after each epoch, a list for each seed."""
        return [curve(o.entries, self.on_images) for o in self.outcomes.values()]

    @property
    def seconds(self) -> float:
        """Tuning time, summed over the seeds."""
        return sum(tuning_seconds(o.entries) for o in self.outcomes.values())

    @property
    def _finished_seeds(self) -> list[list[Entry]]:
        return [o.entries for o in self.outcomes.values() if o.status == "finished"]


@dataclass(frozen=True)
class Compared:
    """The best point and the default on images that had no part in ranking them: mAP (0-100).

    `difference`: mean and ends of its paired 95 % interval, which are NaN with too few images.
    `where`: which images, for example "200 composed scenes (without the 200 used for selection)".
    """

    best: float
    default: float
    difference: tuple[float, float, float]
    best_ci: Sequence[float] | None
    default_ci: Sequence[float] | None
    where: str


def point_results(plan: SweepPlan, records: TrialRecords) -> list[PointResult]:
    """How all points ended, in the order of the plan."""
    results = []
    for point in plan.points:
        stages = point.plan.tuning
        found = {seed: records.find(s) or records.failure(s) for seed, s in stages.items()}
        outcomes = {seed: outcome for seed, outcome in found.items() if outcome}
        results.append(
            PointResult(point.number, point.fields, outcomes, len(stages), plan.on_images)
        )
    return results


def best_point(results: Sequence[PointResult]) -> PointResult:
    """The finished point with the highest mean, the first of equals. Raises RuntimeError."""
    finished = [result for result in results if result.finished]
    if not finished:
        reason = next((result.reason for result in results if result.reason), "all were stopped")
        raise RuntimeError(f"sweep: no point was tuned with all its seeds; first reason: {reason}")
    return max(finished, key=lambda result: fmean(result.objective))


def ranked_by(on_images: bool) -> str:
    """What the points are ranked by, in words."""
    return f"mAP on {'the selection half of the images' if on_images else 'held-out captions'}"


def tuning_seconds(entries: Sequence[Entry]) -> float:
    """How long the epochs took, without interruptions; 0 if their times are not known."""
    total = before = 0.0
    for entry in entries:
        if "at" in entry:
            total += entry["at"] - max(entry["started"], before)
            before = entry["at"]
    return total


def finite(values: Sequence[float]) -> list[float]:
    """The values that are numbers."""
    return [value for value in values if math.isfinite(value)]
