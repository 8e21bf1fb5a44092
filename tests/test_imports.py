"""The rooms: imports go only downwards, and the method can be used without Ray and vLLM."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each package never imports, not even inside a function.
FORBIDDEN = {
    "prompt_tuning": {"workers", "orchestrator", "ray", "vllm"},
    "workers": {"orchestrator"},
}
FILES = [file for package in FORBIDDEN for file in sorted((ROOT / package).rglob("*.py"))]


def imported(source: str) -> set[str]:
    """Top-level names of all that a module's source imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # A relative import stays in its package.
            names |= {(node.module or "").partition(".")[0]} if node.level == 0 else set()
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("__import__", "import_module", "importlib.import_module")
            and isinstance(node.args[0], ast.Constant)
        ):
            names.add(str(node.args[0].value).partition(".")[0])
    return names


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import ray.train
def f():
    from vllm import LLM
    importlib.import_module("workers.knowledge.ledger")
if TYPE_CHECKING:
    from orchestrator.plan.run import Plan
"""
    assert imported(source) == {"ray", "vllm", "workers", "orchestrator"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_downwards(file: Path) -> None:
    package = file.relative_to(ROOT).parts[0]
    assert not imported(file.read_text("utf-8")) & FORBIDDEN[package]


def test_there_are_files_to_check() -> None:
    assert len(FILES) > 20


def test_modules_are_named_after_what_they_know() -> None:
    folders = ("prompt_tuning", "workers", "orchestrator", "benchmarks", "tests")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    vague = {"util", "utils", "helper", "helpers", "common", "misc"}
    assert [file for file in files if vague & set(file.stem.lower().split("_"))] == []


# Of find_spec, None means "ask the next finder", so an absent package has to be an error.
METHOD_ALONE = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "vllm", "workers", "orchestrator"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import prompt_tuning
for module in pkgutil.walk_packages(prompt_tuning.__path__, "prompt_tuning."):
    importlib.import_module(module.name)
    print(module.name)
"""


def test_the_method_imports_without_ray_and_vllm() -> None:
    done = subprocess.run(
        [sys.executable, "-c", METHOD_ALONE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "prompt_tuning.tuning.trainer" in done.stdout
    assert "prompt_tuning.backbones.clip" in done.stdout
