"""A command as a job for a Ray cluster: what is checked and uploaded before it runs there."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster.placement import place_engines, place_workers
from orchestrator.cluster.resources import Resources
from orchestrator.cluster.working_directory import Parcel, pack
from orchestrator.config.inputs import input_files
from orchestrator.config.load import check_config, chosen_folders, read_config
from orchestrator.config.messages import validate
from orchestrator.config.models import RunConfig
from orchestrator.errors import InputError
from orchestrator.paths import check_absolute
from orchestrator.sweep.settings import SweepSettings

_PACKAGES = ("orchestrator", "workers", "prompt_tuning")


@dataclass(frozen=True)
class Job:
    """`arguments`: for Python. `excludes`: patterns, as in .gitignore, of files not to upload.

    `packages`: folders of our own packages, unless the working directory contains them.
    """

    arguments: list[str]
    excludes: list[str]
    packages: list[str]
    parcel: Parcel
    config: RunConfig


def prepare_job(
    config: Path, what: str, overrides: list[str], cache: str | None, runs: str | None
) -> Job:
    """Prepare the job that runs the command `what` with a config.

    Raises InputError for a mistake in the config or options. The job checks files on the cluster.
    """
    here = Path.cwd()
    path = config.resolve()
    if not path.is_relative_to(here):
        raise InputError(
            f"{config}: must be below the working directory {here}, because only that is uploaded "
            "to the cluster"
        )
    raw = read_config(config, overrides, cache, runs)
    varied = raw.pop("sweep", None)
    if what == "sweep":
        validate(SweepSettings, varied, f"{config}: sweep")
    loaded = check_config(raw, str(config))
    _check_files(loaded, path.parent, here)
    stay = {"paths.cache": loaded.paths.cache, "paths.runs": loaded.paths.runs}
    if loaded.evaluation.root is not None:
        stay["evaluation.root"] = loaded.evaluation.root
    for field, name in stay.items():
        check_absolute(name, field)
    arguments = ["-m", "orchestrator", what, str(path.relative_to(here))]
    for override in overrides:
        arguments += ["--set", override]
    for option, folder in chosen_folders(cache, runs).items():
        arguments += [f"--{option}", folder]
    folders = [Path(name).expanduser().resolve() for name in stay.values()]
    inside = [folder for folder in folders if here in folder.parents]
    excludes = [f"/{folder.relative_to(here)}" for folder in inside]
    return Job(arguments, excludes, _own_packages(here), pack(here, excludes), loaded)


def _check_files(config: RunConfig, base: Path, here: Path) -> None:
    """Check that files with a relative path exist and are uploaded. Raises InputError."""
    for field, name in input_files(config):
        if Path(name).expanduser().is_absolute():
            continue  # it may exist only on the cluster
        file = (base / name).resolve()
        if not file.is_file():
            raise InputError(f"{field}: {name!r} is not a file (looked at {file})")
        if here not in file.parents:
            raise InputError(
                f"{field}: {name!r} is not below the working directory {here}, so it would not be "
                "uploaded; name it by an absolute path that every node can see"
            )


def check_room(config: RunConfig, command: str, resources: Resources) -> None:
    """Check that the cluster has room for the command's engines and workers, or may get it.

    Raises InputError.
    """
    llm, tuning = config.knowledge.llm, config.tuning
    if config.knowledge.questions.asks_something and not resources.lacks(llm):
        place_engines(llm, resources)
    if command != "knowledge" and not resources.lacks(tuning):
        place_workers(tuning, resources)


def _own_packages(here: Path) -> list[str]:
    if all((here / package / "__init__.py").is_file() for package in _PACKAGES):
        return []
    modules = [importlib.import_module(package) for package in _PACKAGES]
    return [str(Path(module.__file__).parent) for module in modules if module.__file__]
