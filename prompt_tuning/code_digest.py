"""The digest of the code that a result depends on: its entry modules and their imports.

The keys of results include it: a changed formula in any module makes a new result, a reworded error
does not.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from prompt_tuning.storage import digest

_PACKAGES = ("prompt_tuning", "workers", "orchestrator")
_LOG_METHODS = {"debug", "info", "warning", "error", "exception", "warn", "print"}


def code_digest(*entries: str, root: Path | None = None) -> str:
    """SHA-256 (hex) of the code of modules and of all that they import from our packages.

    Comments, docstrings, types of `if TYPE_CHECKING` and the text of messages (see `_Code`) do not
    count. Names looked up at run time, as by `importlib`, are not followed.

    Args:
        entries: names of modules; these are read, not imported.
        root: the folder of our packages, by default wherever Python finds each of them: in a Ray
            job each is in a folder of its own.
    """
    return digest([[name, _read(name, root)[0]] for name in imported_modules(*entries, root=root)])


def imported_modules(*entries: str, root: Path | None = None) -> list[str]:
    """The entries and all modules of our packages that they import, also indirectly, sorted.

    A package's `__init__` counts where names are imported from it. Imports inside functions count,
    imports that only messages use do not. The digest of a syntax tree differs between versions of
    Python.
    """
    found: set[str] = set()
    ahead = list(entries)
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            ahead += _read(name, root)[1]
    return sorted(found)


@cache
def _read(name: str, root: Path | None) -> tuple[str, list[str]]:
    """The digest of a module's code, and the modules of our packages that it imports."""
    file = _file(name, root)
    assert file is not None, f"no module {name}"
    code = _Code()
    tree = code.visit(ast.parse(file.read_bytes()))
    nodes = list(ast.walk(tree))
    only_in_messages = code.in_messages - {n.id for n in nodes if isinstance(n, ast.Name)}
    imports = list(_imports(nodes, only_in_messages, root))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports


def _file(name: str, root: Path | None) -> Path | None:
    package, *rest = name.split(".")
    folder = root / package if root else _installed(package)
    place = folder.joinpath(*rest)
    return next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()), None)


@cache
def _installed(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"no package {package}"
    return Path(spec.submodule_search_locations[0])


def _imports(nodes: Iterable[ast.AST], ignored: set[str], root: Path | None) -> Iterator[str]:
    """Our modules in import statements, except those bound to the `ignored` names."""
    for node in nodes:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for alias in node.names:
            if (alias.asname or alias.name) in ignored:
                continue
            names = [alias.name]
            if isinstance(node, ast.ImportFrom):
                assert node.module and not node.level, "relative imports are not used here"
                names = [node.module, f"{node.module}.{alias.name}"]
            for name in names:
                if name.partition(".")[0] in _PACKAGES and _file(name, root):
                    yield name


class _Code(ast.NodeTransformer):
    """Removes code that cannot change a result.

    These are docstrings, `if TYPE_CHECKING` blocks, and text in the arguments of raised exceptions
    and of statements that log or print. Values inside an f-string there go with its text; all other
    arguments stay, because an exception may carry data.
    """

    def __init__(self) -> None:
        self.in_messages: set[str] = set()

    def _visit_documented(
        self, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    ) -> ast.AST:
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        return self.generic_visit(node)

    visit_Module = visit_ClassDef = visit_FunctionDef = _visit_documented
    visit_AsyncFunctionDef = _visit_documented

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        guard = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return node.orelse if guard else node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            self._remove_text(node.exc)
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        call = node.value
        if isinstance(call, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            if name in _LOG_METHODS or (
                isinstance(call.func, ast.Name) and call.func.id == "print"
            ):
                self._remove_text(call)
        return self.generic_visit(node)

    def _remove_text(self, call: ast.Call) -> None:
        call.args = [self._without_text(argument) for argument in call.args]
        for keyword in call.keywords:
            keyword.value = self._without_text(keyword.value)

    def _without_text(self, value: ast.expr) -> ast.expr:
        if isinstance(value, ast.JoinedStr):
            self.in_messages |= {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}
        elif isinstance(value, ast.BinOp):
            value.left, value.right = map(self._without_text, (value.left, value.right))
            return value
        elif isinstance(value, ast.IfExp):
            value.body, value.orelse = map(self._without_text, (value.body, value.orelse))
            return value
        elif not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
            return value
        return ast.Constant("")
