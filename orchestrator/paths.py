"""Resolve the folders of results and check that they are writable."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from orchestrator.errors import InputError


def check_absolute(name: str, field: str) -> None:
    """Check that a path on a cluster is absolute. Raises InputError."""
    if not Path(name).expanduser().is_absolute():
        raise InputError(
            f"{field}: {name!r} must be absolute on a cluster, because the working directory of a "
            "Ray job is a temporary copy"
        )


def check_folder(name: str, field: str) -> Path:
    """Resolve a folder for results, which need not exist yet.

    Raises InputError if it cannot be created or written to, or is relative on a cluster.
    """
    try:
        if os.environ.get("RAY_ADDRESS"):
            check_absolute(name, field)
        folder = Path(name).expanduser().resolve()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            return folder
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{field}: {name[:200]} cannot be written to ({reason})") from None


def cache_folder(option: str | None) -> Path:
    """The cache: `--cache`, else DATAFREE_CACHE, else `cache`. Raises InputError."""
    return check_folder(option or os.environ.get("DATAFREE_CACHE") or "cache", "--cache")
