"""The points of a sweep: combinations of values of the swept fields."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

from orchestrator.config.load import build_config, set_field
from orchestrator.config.models import RunConfig
from orchestrator.errors import InputError
from orchestrator.sweep.settings import SweepSettings, split_names
from prompt_tuning.storage import canonical_json

Fields = dict[str, Any]


def points(settings: SweepSettings) -> list[Fields]:
    """The values of each point by their key in `space`, without repetition.

    A wider space keeps its earlier points, because a draw depends only on its field and number.
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
    """The run config with a point's values. Raises InputError, which names the point."""
    at_point = copy.deepcopy(raw)
    source = f"sweep.space: {describe(point)}" if point else str(path)
    for key, value in point.items():
        for name in split_names(key):
            set_field(at_point, name, value, source)
    try:
        return build_config(at_point, path)
    except InputError as error:
        raise InputError(f"{source}: {error}" if point else str(error)) from None


def describe(point: Fields) -> str:
    """The values of the swept fields in one line."""
    shown = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in point.values())
    pairs = zip((split_names(key)[0] for key in point), shown, strict=True)
    return ", ".join(f"{name}={value}" for name, value in pairs) or "the default"
