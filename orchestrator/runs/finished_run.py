"""Read what a finished run left in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.config.messages import validate
from orchestrator.config.models import RunConfig
from orchestrator.config.yaml import read_yaml
from orchestrator.errors import InputError
from prompt_tuning.evaluation.baselines import MethodFeatures
from prompt_tuning.evaluation.selection import Selection
from prompt_tuning.tagging.artifact import Artifact
from workers.evaluation_files import CLASS_FEATURES, SELECTION, read_selection


@dataclass(frozen=True)
class FinishedRun:
    """The files of a run that an evaluation needs."""

    folder: Path
    config: RunConfig
    artifact: Artifact
    methods: MethodFeatures
    selection: Selection


def read_run(folder: Path) -> FinishedRun:
    """Read a run's folder. Raises InputError if it is not one, or if a file is missing."""
    config_file, methods = folder / "config.yaml", folder / CLASS_FEATURES
    if not config_file.is_file():
        raise InputError(f"{folder}: not a run's folder, such as runs/quickstart (no config.yaml)")
    try:
        artifact = Artifact.load(folder / "artifact")
    except ValueError as error:
        raise InputError(str(error)) from None
    selected = folder / SELECTION
    for file in (methods, selected):
        if not file.is_file():
            raise InputError(f"{file} is missing; `datafree run {config_file}` writes it")
    config = validate(RunConfig, read_yaml(config_file), str(config_file))
    return FinishedRun(
        folder, config, artifact, MethodFeatures.load(methods), read_selection(selected)[1]
    )
