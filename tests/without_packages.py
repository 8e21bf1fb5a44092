"""The command line, or a script, in an environment that lacks packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Of find_spec, None means "not there". The finder stands where Python's own stood, so that an
# editable install is found before it as ever.
_SCRIPT = """
import sys
from importlib.machinery import PathFinder
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.startswith({hidden!r}) else PathFinder.find_spec(name, path, target)
sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""
_COMMAND_LINE = "from orchestrator.cli import main; main()"


def datafree_without(
    hidden: tuple[str, ...], *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Call `datafree` where no module can be found whose name begins with one of `hidden`."""
    return _run(hidden, _COMMAND_LINE, *arguments)


def script_without(
    hidden: tuple[str, ...], script: Path, *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Run a script in the same way, as `python script arguments` would."""
    code = (
        f"sys.argv[0] = {str(script)!r}; sys.path[0] = {str(script.parent)!r}\n"
        f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    return _run(hidden, code, *arguments)


def _run(
    hidden: tuple[str, ...], code: str, *arguments: object
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _SCRIPT.format(hidden=hidden) + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)
