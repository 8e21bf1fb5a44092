"""The working directory as it travels to a cluster: how large it is, and what makes it so."""

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

_WORTH_SAYING = 20_000_000
_NAMED = 3
# What Ray's ZIP archive, which is not compressed, adds to a file beside twice its name, and once.
_ZIP_ENTRY_BYTES, _ZIP_END_BYTES = 76, 22


@dataclass(frozen=True)
class Parcel:
    """`packed`: bytes; `largest`: the files and folders of the working directory that are most of
    it, with their bytes."""

    packed: int
    largest: list[tuple[str, int]]

    @property
    def is_large(self) -> bool:
        """Whether sending it takes so long that people should know why."""
        return self.packed > _WORTH_SAYING

    def __str__(self) -> str:
        largest = ", ".join(f"{name} {_megabytes(size)}" for name, size in self.largest)
        return (
            f"{_megabytes(self.packed)}; largest: {largest}; list what the job does not need in "
            ".rayignore, in the manner of .gitignore"
        )


def pack(folder: Path, excludes: list[str]) -> Parcel:
    """What Ray would send of a folder, by Ray's own rules for what stays behind.

    Raises:
        InputError: for more than the job server takes.
    """
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
    parcel = Parcel(sizes.total() + _ZIP_END_BYTES, sizes.most_common(_NAMED))
    if parcel.packed >= DASHBOARD_CLIENT_MAX_SIZE:
        raise InputError(
            f"{folder}: must be smaller than {_megabytes(DASHBOARD_CLIENT_MAX_SIZE)} to travel to "
            f"the cluster (got {parcel})"
        )
    return parcel


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
