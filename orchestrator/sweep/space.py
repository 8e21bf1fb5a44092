"""The points of a sweep: which values the swept fields take together."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from orchestrator.config.load import build_config, set_field
from orchestrator.config.models import RunConfig
from orchestrator.config.renamed_fields import renamed
from orchestrator.errors import InputError
from orchestrator.plan.run import TUNING
from prompt_tuning.knowledge.hashed_sampling import unit_draw
from prompt_tuning.settings import Settings
from prompt_tuning.storage import canonical_json
from workers.tuning.trials import Halving, Tracker

# What points are compared by, how large their trials are, and where results are kept.
_FIXED = (
    "name",
    "paths",
    "seeds",
    "categories",
    "evaluation",
    "vlm.resolution",
    "tuning.workers",
    "tuning.gpus_per_worker",
    "tuning.cpus_per_worker",
    "tuning.pool",
    "sweep",
)
# These decide which captions are held out, and which there are.
_CAPTIONS = ("captions", "knowledge")

Fields = dict[str, Any]
Bounds = Annotated[tuple[float, ...], Field(min_length=2, max_length=2)]
Values = Annotated[tuple[Any, ...], Field(min_length=1, max_length=1000)]


class Axis(Settings):
    """The values of one field: all of `grid` in turn, or a draw a sample from one of the others."""

    grid: Values | None = None
    choice: Values | None = None
    uniform: Bounds | None = None
    loguniform: Bounds | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Axis:
        given = [kind for kind in type(self).model_fields if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError("needs exactly one of grid, choice, uniform and loguniform")
        bounds = self.uniform or self.loguniform
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"{given[0]}: the first bound must be below the second")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError("loguniform: bounds must be above 0")
        return self

    def has(self, value: Any) -> bool:
        """Whether a value may be drawn."""
        if self.choice is not None:
            return value in self.choice
        low, *_, high = self.uniform or self.loguniform or (math.inf, -math.inf)
        return isinstance(value, float | int) and low <= value <= high

    def draw(self, *name: object) -> Any:
        """A value from a distribution, decided by the draw's name."""
        share = unit_draw(*name)
        if self.choice is not None:
            return self.choice[int(share * len(self.choice))]
        if self.uniform is not None:
            low, high = self.uniform
            return low + share * (high - low)
        assert self.loguniform is not None
        low, high = (math.log(bound) for bound in self.loguniform)
        return math.exp(low + share * (high - low))


class SweepSettings(Settings):
    """What `datafree sweep` varies, on top of a run config.

    `space`: by dotted field; several names with commas between them take the same value. Every
    combination of the grids is joined with `samples` draws of the other axes, from `seed`. `seeds`:
    how many seeds (0, 1, …) each point is tuned with; it is ranked by their mean. `search: optuna`
    lets Optuna propose `samples` points, one after the results of others. `asha`: stops points that
    fall behind (Li et al., 2020, arXiv 1810.05934), by the epochs of their first seed.
    """

    space: Annotated[dict[str, Axis], Field(min_length=1)]
    samples: Annotated[int, Field(ge=1, le=100_000)] = 1
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    search: Literal["random", "optuna"] = "random"
    asha: Halving | None = None
    trackers: tuple[Tracker, ...] = ()

    @field_validator("space")
    @classmethod
    def _fields_may_vary(cls, space: dict[str, Axis]) -> dict[str, Axis]:
        names = [name for key in space for name in split_names(key)]
        for name in names:
            if moved := renamed(name):
                raise ValueError(moved)
            if is_below(name, _FIXED):
                raise ValueError(f"{name} cannot be swept: it is the same for all points")
            if names.count(name) > 1:
                raise ValueError(f"{name} is given twice")
        return space

    @model_validator(mode="after")
    def _samples_are_drawn(self) -> SweepSettings:
        grids = [key for key, axis in self.space.items() if axis.grid is not None]
        if self.samples > 1 and len(grids) == len(self.space):
            raise ValueError(
                "samples: all axes are grids, whose points are all tried once; leave samples out, "
                "or use choice, uniform or loguniform"
            )
        if self.search == "optuna" and grids:
            raise ValueError(f"space.{grids[0]}: optuna proposes points itself; use choice")
        early = [key for key in self.space if not all(map(_tunes, split_names(key)))]
        if self.search == "optuna" and early:
            raise ValueError(
                f"space.{early[0]}: matters before tuning, which all points of optuna share; "
                "search: random can vary it"
            )
        return self

    def check_comparable(self, select_on: str) -> None:
        """Refuse points whose held-out captions differ where these choose.

        Raises:
            InputError: naming the axis.
        """
        for key in self.space:
            if select_on == "text" and any(is_below(n, _CAPTIONS) for n in split_names(key)):
                raise InputError(
                    f"sweep.space: {key} changes the held-out captions that points are compared "
                    "on; evaluation.select_on: evaluation would compare on images"
                )


def is_below(name: str, fields: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of these fields, within one or around one."""
    return any(f"{name}.".startswith(f"{f}.") or f"{f}.".startswith(f"{name}.") for f in fields)


def _tunes(name: str) -> bool:
    return name.split(".")[0] in TUNING


def split_names(key: str) -> list[str]:
    """The fields that an axis sets."""
    return [name.strip() for name in key.split(",")]


def points(settings: SweepSettings) -> list[Fields]:
    """The values of all points by the axis' key, without repetition.

    A wider space keeps the points that it had: each draw is named by its field and its number.
    """
    grids = {key: axis.grid for key, axis in settings.space.items() if axis.grid is not None}
    drawn = [key for key in settings.space if key not in grids]
    listed = [
        {
            **dict(zip(grids, values, strict=True)),
            **{key: settings.space[key].draw(settings.seed, key, n) for key in drawn},
        }
        for values in itertools.product(*grids.values())
        for n in range(settings.samples)
    ]
    return list({canonical_json(point): point for point in listed}.values())


def config_at(raw: dict[str, Any], point: Fields, path: Path) -> RunConfig:
    """The run config of a point: that of the file, with the point's values.

    Raises:
        InputError: naming the point, the field, and what is wrong.
    """
    at_point = copy.deepcopy(raw)
    source = f"sweep.space: {told(point)}" if point else str(path)
    for key, value in point.items():
        for name in split_names(key):
            set_field(at_point, name, value, source)
    try:
        return build_config(at_point, path)
    except InputError as error:
        raise InputError(f"{source}: {error}" if point else str(error)) from None


def told(point: Fields) -> str:
    """A point in words: the values of the swept fields."""
    shown = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in point.values())
    pairs = zip((split_names(key)[0] for key in point), shown, strict=True)
    return ", ".join(f"{name}={value}" for name, value in pairs) or "as the config says"
