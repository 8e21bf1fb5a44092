"""The labelled images that `evaluate` measures on, and the name of the files it writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from orchestrator.config.messages import validate
from orchestrator.config.models import EvaluationSettings
from orchestrator.errors import InputError
from prompt_tuning.datasets.registry import DATASETS
from prompt_tuning.storage import digest


def chosen_settings(own: EvaluationSettings, options: dict[str, Any]) -> EvaluationSettings:
    """The data set that the options name, or the run's own data set with these options.

    `options`: fields of `DatasetSettings`, `scenes_seed` and `scenes_images`; None if not given.
    Raises InputError.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if "root" in given:
        given["root"] = str(Path(given["root"]).expanduser().resolve())
    scenes = {
        field: given.pop(f"scenes_{field}")
        for field in ("seed", "images")
        if f"scenes_{field}" in given
    }
    start = {} if "dataset" in given else own.model_dump()
    given["scenes"] = {**own.scenes.model_dump(), **scenes}
    settings = validate(EvaluationSettings, {**start, **given}, "evaluation")
    if settings.dataset == "none":
        raise InputError(
            "--dataset: is missing, and the run has no data set of its own; choose one of "
            + ", ".join((*DATASETS, "scenes"))
        )
    if scenes and settings.dataset != "scenes":
        raise InputError(f"--scenes-{next(iter(scenes))}: only goes with dataset: scenes")
    try:
        settings.options()
    except ValueError as error:
        raise InputError(f"--{error}") from None
    if settings.root is not None and not Path(settings.root).is_dir():
        where = DATASETS[settings.dataset].where_to_get
        raise InputError(f"--root: {settings.root} is not a folder; {where}")
    return settings


def evaluation_name(settings: EvaluationSettings, own: EvaluationSettings) -> str:
    """The name of an evaluation's files: the data set, and its options unless it is the run's."""
    if measured_on(settings) == measured_on(own):
        return settings.dataset
    if settings.dataset == "scenes":
        parts = [f"seed-{settings.scenes.seed}", f"images-{settings.scenes.images}"]
    else:
        options = settings.options()
        crowd = {True: ["crowd"], False: ["no-crowd"]}.get(options.pop("crowd", None), [])
        folder = Path(settings.root or "").name
        parts = [*options.values(), *crowd, folder, digest(measured_on(settings))[:6]]
    plain = (re.sub(r"[^A-Za-z0-9._-]+", "_", part)[:40] for part in parts)
    return "-".join((settings.dataset, *plain))


def measured_on(settings: EvaluationSettings) -> dict[str, Any]:
    """The fields that decide which images and labels are used."""
    scenes = settings.scenes.model_dump() if settings.dataset == "scenes" else None
    return {
        "dataset": settings.dataset,
        "root": settings.root,
        "scenes": scenes,
        **settings.options(),
    }
