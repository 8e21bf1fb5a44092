"""The rooms: imports go only downwards, and the method can be used without Ray and vLLM."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each package never imports, not even inside a function.
FORBIDDEN = {
    "prompt_tuning": {"workers", "orchestrator", "ray", "vllm"},
    "workers": {"orchestrator"},
}
PACKAGE_FILES = [
    file for package in (*FORBIDDEN, "orchestrator") for file in (ROOT / package).rglob("*.py")
]
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


def imported_modules(tree: ast.AST, modules: set[str]) -> set[str]:
    """The `modules` that some code imports, also inside functions, but not for type checking."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= submodules or {node.module}
        found |= imported_modules(node, modules)
    return found & modules


def import_cycle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle of modules that import each other, the first one repeated at the end, or []."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for imported in sorted(graph[module]):
                if cycle := search(imported, [*path, module]):
                    return cycle
            done.add(module)
        return []

    return next(filter(None, (search(module, []) for module in sorted(graph))), [])


def test_no_modules_import_each_other() -> None:
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in PACKAGE_FILES
    }
    graph = {
        module: imported_modules(ast.parse(file.read_text("utf-8")), set(files))
        for module, file in files.items()
    }
    assert "workers.stage" in graph["orchestrator.runs.pipeline"]
    assert import_cycle(graph) == []


def test_cycles_are_found_through_functions_but_not_through_types() -> None:
    modules = {"a", "b", "b.c"}
    source = "def f():\n    from b import c, d\nif TYPE_CHECKING:\n    import a"
    assert imported_modules(ast.parse(source), modules) == {"b.c"}
    assert import_cycle({"a": {"b"}, "b": {"b.c"}, "b.c": {"b"}}) == ["b", "b.c", "b"]
    assert import_cycle({"a": {"b", "b.c"}, "b": {"b.c"}, "b.c": set()}) == []


def test_no_folder_has_more_than_15_modules() -> None:
    sizes = Counter(file.parent for file in PACKAGE_FILES if file.name != "__init__.py")
    assert {folder: size for folder, size in sizes.items() if size > 15} == {}


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
