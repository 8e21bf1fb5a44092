"""The plan of a sweep: its points, what they share, and the trials that tune them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.cluster.resources import Resources
from orchestrator.config.messages import validate
from orchestrator.config.models import RunConfig
from orchestrator.errors import InputError
from orchestrator.plan.run import TUNING, Plan, make_plan, retune
from orchestrator.sweep.settings import SweepSettings, split_names
from orchestrator.sweep.space import Fields, config_at, describe, points
from prompt_tuning.install_hints import pip_install
from prompt_tuning.storage import canonical_json, digest
from workers.stage import Stage


@dataclass(frozen=True)
class Point:
    """One setting of the swept fields; number 0 is the default, the config as it is written."""

    number: int
    fields: Fields
    plan: Plan

    @property
    def description(self) -> str:
        """The values of the swept fields in one line."""
        return describe(self.fields)


@dataclass
class SweepPlan:
    """All decisions of a sweep before it starts; Optuna adds points while it runs.

    `raw`: the plain values of the config file `path`, without its `sweep` part.
    """

    settings: SweepSettings
    raw: dict[str, Any]
    path: Path
    resources: Resources
    stamps: Path | None
    points: list[Point] = field(default_factory=list)
    _planned: dict[str, Plan] = field(default_factory=dict)

    @property
    def default(self) -> Point:
        return self.points[0]

    @property
    def run_folder(self) -> Path:
        return self.default.plan.run_folder

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.default.plan.config.seeds

    @property
    def slots(self) -> int:
        """How many trials fit on the cluster at once; all need the same resources."""
        share = self.default.plan.share
        tuning = self.default.plan.config.tuning
        nodes = self.resources.chosen_by(tuning, "tuning")
        # None fits where the cluster has to grow first.
        return max(1, nodes.holds(share.cpus, share.gpus) // tuning.workers)

    @property
    def on_images(self) -> bool:
        """Whether points are ranked on images, or else on held-out captions."""
        return self.default.plan.labelled.select

    @property
    def measured_on(self) -> str:
        """An identifier of the images that points are ranked on, or "text"."""
        plan = self.default.plan
        if not plan.labelled.select or plan.labelled.images is None:
            return "text"
        return digest([plan.labelled.images.key, plan.config.evaluation.split_seed])[:12]

    def shared(self) -> dict[Stage, Plan]:
        """The stages before tuning, each once, with a plan that contains it."""
        return {stage: point.plan for point in reversed(self.points) for stage in point.plan.shared}

    def add(self, fields: Fields) -> Point:
        """Add a point, or return the earlier one with the same stages. Raises InputError."""
        config = config_at(self.raw, fields, self.path)
        config = config.model_copy(update={"seeds": tuple(range(self.settings.seeds))})
        try:
            plan = self._plan(config)
        except InputError as error:
            raise InputError(
                f"sweep.space: {describe(fields)}: {error}" if fields else str(error)
            ) from None
        for point in self.points:
            if point.plan.evaluation == plan.evaluation:
                return point
        self.points.append(Point(len(self.points), values_of(config, self.settings.space), plan))
        return self.points[-1]

    def _plan(self, config: RunConfig) -> Plan:
        """Plan a run; points with the same stages before tuning share the plan of these."""
        before = canonical_json(config.model_dump(mode="json", exclude=set(TUNING)))
        if before not in self._planned:
            self._planned[before] = make_plan(config, self.resources, self.stamps)
        return retune(self._planned[before], config)


def plan_sweep(
    raw: dict[str, Any], path: Path, resources: Resources, stamps: Path | None
) -> SweepPlan:
    """Check all points of a sweep and key their stages.

    `raw`: the plain values of the config file `path`, with its `sweep` part. `stamps`: as in
    `make_plan`.

    Raises InputError for a mistake in the config of any point.
    """
    run = dict(raw)
    if "sweep" not in run:
        raise InputError(f"{path} has no `sweep` part; see configs/sweep.yaml for an example")
    settings = validate(SweepSettings, run.pop("sweep"), f"{path}: sweep")
    _check_extras(settings)
    plan = SweepPlan(settings, run, path, resources, stamps)
    default = plan.add({}).plan.config
    settings.check_comparable(default.evaluation.select_on)
    if settings.search == "random":
        for fields in points(settings):
            plan.add(fields)
    longest = max(point.plan.config.tuning.epochs for point in plan.points)
    if settings.asha and settings.asha.grace >= longest:
        raise InputError(
            f"sweep.asha.grace must be below tuning.epochs, {longest} (got {settings.asha.grace}): "
            "otherwise no trial is ever stopped"
        )
    return plan


def _check_extras(settings: SweepSettings) -> None:
    """Refuse settings whose package is missing, before anything runs for hours."""
    for extra in (*settings.trackers, *(["optuna"] if settings.search == "optuna" else [])):
        if importlib.util.find_spec(extra) is None:
            package = "mlflow-skinny" if extra == "mlflow" else extra
            raise InputError(f"sweep: {extra} is not installed: {pip_install(package)}")


def values_of(config: RunConfig, keys: Iterable[str]) -> Fields:
    """The values of the swept fields; several in a key have the first's. Raises InputError."""
    dumped = config.model_dump(mode="json")
    values = {key: [_value_at(dumped, name) for name in split_names(key)] for key in keys}
    return {key: first for key, (first, *_) in values.items()}


def _value_at(place: Any, name: str) -> Any:
    for part in name.split("."):
        if not isinstance(place, dict) or part not in place:
            there = f"; the fields here are {', '.join(place)}" if isinstance(place, dict) else ""
            raise InputError(f"sweep.space: unknown field {name}{there}")
        place = place[part]
    return place
