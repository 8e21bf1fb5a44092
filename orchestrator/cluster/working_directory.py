"""The working directory as Ray uploads it: its size, and its largest files."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ray._private.ray_constants import (
    DASHBOARD_CLIENT_MAX_SIZE,
    RAY_RUNTIME_ENV_IGNORE_GITIGNORE,
    get_runtime_env_default_excludes,
)
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

from orchestrator.errors import InputError

_LARGE = 20_000_000
_FILES_NAMED = 3
# Ray's ZIP archive is uncompressed. It adds twice its name and this to each file, and this once.
_ZIP_ENTRY_BYTES, _ZIP_END_BYTES = 76, 22


@dataclass(frozen=True)
class Parcel:
    """`packed`: bytes. `largest`: the largest files and top folders, with their bytes."""

    packed: int
    largest: list[tuple[str, int]]

    @property
    def is_large(self) -> bool:
        """Whether the upload takes so long that the user should know why."""
        return self.packed > _LARGE

    def __str__(self) -> str:
        largest = ", ".join(f"{name} {_megabytes(size)}" for name, size in self.largest)
        return (
            f"{_megabytes(self.packed)}; largest: {largest}; list what the job does not need in "
            ".rayignore (same syntax as .gitignore)"
        )


def pack(folder: Path, excludes: list[str]) -> Parcel:
    """Measure what Ray would upload of a folder. Raises InputError if that is too large."""
    sizes: Counter[str] = Counter()

    def count(path: Path) -> None:
        if path.is_file():
            inside = path.relative_to(folder)
            top = inside.parts[0] + ("/" if len(inside.parts) > 1 else "")
            sizes[top] += path.stat().st_size + 2 * len(os.fsencode(inside)) + _ZIP_ENTRY_BYTES

    _dir_travel(
        folder,
        [_get_excludes(folder, get_runtime_env_default_excludes() + excludes)],
        count,
        include_gitignore=os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE) != "1",
    )
    parcel = Parcel(sizes.total() + _ZIP_END_BYTES, sizes.most_common(_FILES_NAMED))
    if parcel.packed >= DASHBOARD_CLIENT_MAX_SIZE:
        raise InputError(
            f"{folder}: must be smaller than {_megabytes(DASHBOARD_CLIENT_MAX_SIZE)} to be "
            f"uploaded (got {parcel})"
        )
    return parcel


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
