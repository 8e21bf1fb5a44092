"""What the page of a sweep shows: its points, and the best against the default."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class SweptPoint:
    """One point of a sweep; figures are mAP, 0-100."""

    number: int  # 0 is the default: the config as written
    fields: dict[str, Any]  # value of each axis: int, float, str, bool, None, list, dict
    status: str  # finished | stopped | failed
    reason: str  # why it failed, else ""
    epochs: int  # most that any of its seeds was tuned for
    objective: list[float]  # of each finished seed (what it is ranked by)
    text_map: list[float]  # held-out captions, of each finished seed
    selecting_map: list[float]  # the images that select, of each finished seed; [] when text does
    curves: list[list[float]]  # a list a seed: the objective after each epoch (also of stopped)
    seconds: float  # of tuning, all seeds

    @property
    def finished(self) -> bool:
        """Whether it can be ranked."""
        return self.status == "finished" and bool(self.objective)

    @property
    def level(self) -> float | None:
        """The mean over seeds of the objective, where it was stopped of the last values."""
        if self.finished:
            return fmean(self.objective)
        last = [curve[-1] for curve in map(finite, self.curves) if curve]
        return fmean(last) if last and self.status == "stopped" else None


@dataclass(frozen=True)
class Compared:
    """The best point against the default on what did not select, mean over seeds."""

    best: float
    default: float
    difference: tuple[float, float, float]  # mean, low, high (paired, 95 %); NaN of few images
    best_ci: Sequence[float] | None
    default_ci: Sequence[float] | None
    where: str  # e.g. "200 composed scenes (without the 200 used for selection)"


@dataclass(frozen=True)
class SweepData:
    """All that the page shows."""

    name: str
    axes: list[str]  # dotted field names, several with commas between
    objective: str  # "mAP on the selection half of the images" | "mAP on held-out captions"
    points: list[SweptPoint]
    best: int  # number; 0 when nothing is better than the default
    compared: Compared | None  # None without images, or where the default could not be tuned
    epochs: int  # of a full tuning
    asha: str  # when ASHA stops a point, in words, or ""
    seconds: dict[str, float]  # cost: "tuning" (sum over trials), "wall", "trials", "slots"
    config_yaml: str
    best_yaml: str  # only the swept fields of the best point, as YAML to paste
    embedded: bool
    vlm: str

    @property
    def finished(self) -> list[SweptPoint]:
        """The points with a rank, best first; of equal ones the lower number."""
        done = [point for point in self.points if point.finished]
        return sorted(done, key=lambda point: (-fmean(point.objective), point.number))

    def count(self, status: str) -> int:
        """How many points ended so."""
        return sum(point.status == status for point in self.points)

    def role(self, point: SweptPoint) -> str:
        """How a point is marked: best, default or its status."""
        if point.number == self.best and point.finished:
            return "best"
        return "default" if point.number == 0 else point.status


def finite(values: Sequence[float]) -> list[float]:
    """Those that are numbers."""
    return [value for value in values if math.isfinite(value)]
