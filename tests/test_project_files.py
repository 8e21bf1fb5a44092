"""Licence, metadata and the checks before a commit agree with each other and with the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_the_licence_is_named_and_its_text_is_there() -> None:
    metadata = PROJECT["project"]
    assert metadata["license"] == "Apache-2.0"
    assert all((ROOT / name).is_file() for name in metadata["license-files"])
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")


def test_notice_names_every_embedded_model() -> None:
    notice = (ROOT / "NOTICE").read_text("utf-8")
    for requirement in PROJECT["project"]["optional-dependencies"]["embedded"]:
        name, pin, _ = requirement.partition("==")
        assert not pin or name in notice


def test_pre_commit_has_the_pinned_ruff() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    pinned = re.search(
        r"^ruff==(\S+)$", (ROOT / "requirements/dev.txt").read_text("utf-8"), re.MULTILINE
    )
    assert pinned
    assert hooks["repos"][0]["rev"] == f"v{pinned[1]}"


def test_the_citation_has_the_version_of_the_project() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]


@pytest.mark.parametrize("package", ["prompt_tuning", "workers", "orchestrator"])
def test_each_package_ships_its_type_information(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"][package]
