"""Read a config file with its overrides, and check it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from orchestrator.config.inputs import with_absolute_inputs
from orchestrator.config.messages import validate
from orchestrator.config.models import RunConfig
from orchestrator.config.yaml import parse_yaml, read_yaml
from orchestrator.errors import InputError
from prompt_tuning.backbones.base import VLMSettings
from prompt_tuning.tuning.recipe import with_recipe


def load_config(path: Path, overrides: list[str], cache: str | None, runs: str | None) -> RunConfig:
    """The checked config of a file, without its `sweep`, with all overrides. Raises InputError."""
    raw = read_config(path, overrides, cache, runs)
    raw.pop("sweep", None)
    return build_config(raw, path)


def read_config(
    path: Path, overrides: list[str], cache: str | None, runs: str | None
) -> dict[str, Any]:
    """The unchecked values of a config file, with all overrides. Raises InputError."""
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must be a mapping of settings, such as `name: my-run`")
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise InputError(f"--set {override!r}: must be FIELD=VALUE, such as tuning.epochs=5")
        set_field(raw, name, parse_yaml(text, f"--set {override!r}"), f"--set {override!r}")
    chosen = chosen_folders(cache, runs)
    if chosen and isinstance(raw.setdefault("paths", {}), dict):
        raw["paths"].update(chosen)
    return raw


def chosen_folders(cache: str | None, runs: str | None) -> dict[str, str]:
    """The fields of `paths` that an option or else an environment variable sets."""
    given = {
        "cache": cache or os.environ.get("DATAFREE_CACHE"),
        "runs": runs or os.environ.get("DATAFREE_RUNS"),
    }
    return {name: folder for name, folder in given.items() if folder}


def build_config(raw: dict[str, Any], path: Path) -> RunConfig:
    """The checked config from the plain values of the file `path`. Raises InputError."""
    return with_absolute_inputs(check_config(raw, str(path)), path.parent)


def check_config(raw: dict[str, Any], source: str) -> RunConfig:
    """The config from plain values, with its backbone's recipe. Raises InputError."""
    vlm = raw.get("vlm", {})
    kind = vlm.get("kind", VLMSettings().kind) if isinstance(vlm, dict) else None
    return validate(RunConfig, with_recipe(kind, raw) if isinstance(kind, str) else raw, source)


def set_field(raw: dict[str, Any], name: str, value: Any, source: str) -> None:
    """Set the value of a dotted name in nested mappings. Raises InputError."""
    *parents, last = name.split(".")
    place = raw
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise InputError(f"{source}: {parent!r} has no fields")
    place[last] = value
