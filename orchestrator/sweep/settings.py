"""The `sweep` part of a config: which fields vary, over which values, and how to search them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from orchestrator.config.renamed_fields import renamed
from orchestrator.errors import InputError
from orchestrator.plan.run import TUNING
from prompt_tuning.backbones.base import IMAGE_SIDE
from prompt_tuning.knowledge.hashed_sampling import unit_draw
from prompt_tuning.settings import Settings
from workers.placement import NodeSettings
from workers.tuning.trial_settings import ASHA, Tracker

# These are the same for all points: what ranks them, the size of a trial, where results are kept.
_FIXED = (
    "name",
    "paths",
    "seeds",
    "categories",
    "evaluation",
    *(f"vlm.{field}" for field in IMAGE_SIDE),
    "tuning.workers",
    "tuning.gpus_per_worker",
    "tuning.cpus_per_worker",
    *(f"tuning.{field}" for field in NodeSettings.model_fields),
    "sweep",
)
# These decide which captions there are, and which of them are held out.
_CAPTIONS = ("captions", "knowledge")

Bounds = Annotated[tuple[float, ...], Field(min_length=2, max_length=2)]
Values = Annotated[tuple[Any, ...], Field(min_length=1, max_length=1000)]


class Axis(Settings):
    """The values of one field: every one of `grid`, or one draw per sample from another kind."""

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
        """Whether the distribution can give this value."""
        if self.choice is not None:
            return value in self.choice
        low, *_, high = self.uniform or self.loguniform or (math.inf, -math.inf)
        return isinstance(value, float | int) and low <= value <= high

    def draw(self, *name: object) -> Any:
        """A value from the distribution; the same `name` always gives the same value."""
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

    `space`: the values of each dotted field; several names, separated by commas, take the same
    value. Every combination of the grids is tried with `samples` draws of the other fields, which
    follow from `seed`. `seeds`: how many seeds (0, 1, …) each point is tuned with; points are
    ranked by the mean over seeds. `search: optuna` lets Optuna propose `samples` points, each after
    the results of earlier ones. `asha` stops points whose first seed falls behind.
    """

    space: Annotated[dict[str, Axis], Field(min_length=1)]
    samples: Annotated[int, Field(ge=1, le=100_000)] = 1
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    search: Literal["random", "optuna"] = "random"
    asha: ASHA | None = None
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
                "samples: every field has a grid, so nothing is drawn; leave samples out, or use "
                "choice, uniform or loguniform"
            )
        if self.search == "optuna" and grids:
            raise ValueError(f"space.{grids[0]}: optuna cannot use a grid; use choice")
        early = [
            key
            for key in self.space
            if not all(name.split(".")[0] in TUNING for name in split_names(key))
        ]
        if self.search == "optuna" and early:
            raise ValueError(
                f"space.{early[0]}: optuna can only vary fields of tuning; use search: random"
            )
        return self

    def check_comparable(self, select_on: str) -> None:
        """Raise InputError if held-out captions rank the points, but are not the same for all."""
        for key in self.space:
            if select_on == "text" and any(is_below(n, _CAPTIONS) for n in split_names(key)):
                raise InputError(
                    f"sweep.space: {key} changes the held-out captions that rank the points; "
                    "rank them on images with evaluation.select_on: evaluation"
                )


def is_below(name: str, fields: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of these fields, or is inside one, or contains one."""
    return any(f"{name}.".startswith(f"{f}.") or f"{f}.".startswith(f"{name}.") for f in fields)


def split_names(key: str) -> list[str]:
    """The fields that a key of `space` sets."""
    return [name.strip() for name in key.split(",")]
