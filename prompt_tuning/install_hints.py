"""Install commands for messages about missing packages, for the running Python."""

from __future__ import annotations

import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

SOURCE = Path(__file__).parents[1]
_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def pip_install(*arguments: str) -> str:
    """A command line for this Python; the shell may find another `pip`."""
    return shlex.join([sys.executable, "-m", "pip", "install", *arguments])


def install_set(name: Literal["cpu", "gpu"]) -> str:
    """The command that installs a pinned set; its file is in datafree's source, not in a wheel."""
    if Path(sys.prefix) == SOURCE / ".venv":
        # With `clean`: it may have another set, or PyPI's torch instead of the CPU build.
        python = os.path.realpath(sys.executable)
        make = ["make", "-C", str(SOURCE), "clean", "install", f"SET={name}", f"PYTHON={python}"]
        return shlex.join(make)
    file = SOURCE / "requirements" / f"{name}.txt"
    index = () if name == "gpu" or find_spec("torch") else ("--extra-index-url", _TORCH_INDEX)
    if file.is_file():
        return pip_install("--no-deps", "-r", str(file), *index)
    command = pip_install("--no-deps", "-r", file.name, *index)
    return f"{command}, with requirements/{file.name} of datafree's source"
