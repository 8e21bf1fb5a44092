"""An old name of a config field is refused wherever a person may write it, with the new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config.load import load_config, set_field
from orchestrator.config.messages import validate
from orchestrator.config.models import RunConfig
from orchestrator.config.renamed_fields import RENAMED
from orchestrator.errors import InputError
from orchestrator.sweep.settings import SweepSettings

BASE: dict[str, Any] = {"name": "check", "categories": ["cat", "dog", "bird"]}


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_the_old_name_is_refused_in_yaml_set_and_sweep_space(
    tmp_path: Path, old: str, new: str
) -> None:
    message, file = f"`{old}` is now `{new}`", tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(BASE))
    with pytest.raises(InputError) as by_set:
        load_config(file, [f"{old}=1"], None, None)
    assert str(by_set.value) == f"{file}: {message}"
    raw: dict[str, Any] = dict(BASE)
    set_field(raw, old, 1, "test")
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises(InputError) as by_yaml:
        load_config(file, [], None, None)
    assert str(by_yaml.value) == f"{file}: {message}"
    for search in ("random", "optuna"):
        sweep = {"space": {old: {"choice": [1, 2]}}, "search": search}
        with pytest.raises(InputError) as by_sweep:
            validate(SweepSettings, sweep, "sweep")
        assert str(by_sweep.value) == f"sweep: space: {message}"


@pytest.mark.parametrize("new", RENAMED.values())
def test_the_new_name_is_a_field(new: str) -> None:
    place: Any = RunConfig(name="check", categories=("cat", "dog"))
    for part in new.split("."):
        place = getattr(place, part)
