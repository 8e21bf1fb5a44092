"""The command line in an environment that lacks packages."""

from __future__ import annotations

import subprocess
import sys

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
from orchestrator.cli import main
main()
"""


def datafree_without(
    hidden: tuple[str, ...], *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Call `datafree` where no module can be found whose name begins with one of `hidden`."""
    command = [sys.executable, "-c", _SCRIPT.format(hidden=hidden), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
