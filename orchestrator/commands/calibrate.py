"""`datafree calibrate`."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from rich.console import Console

from orchestrator.console import quieten_libraries
from orchestrator.errors import InputError
from orchestrator.interruption import say_if_stopped
from orchestrator.paths import check_folder


def calibrate(
    artifact: Path,
    photos: list[str],
    out: Path,
    root: str | None,
    dataset: str | None,
    split: str | None,
    cache: str | None,
) -> None:
    """Check what is asked, then fit."""
    say_if_stopped("Stopped. The same command starts again.")
    quieten_libraries()
    warnings.filterwarnings("ignore", module="PIL")
    if bool(photos) == bool(root):
        raise InputError(
            "name photos, whose labels are not known, or --root, a folder of labelled ones; "
            f"{'not both' if photos else 'neither is given'}"
        )
    if (dataset or split) and not root:
        raise InputError(f"--{'dataset' if dataset else 'split'}: only goes with --root")
    from orchestrator.tagging.calibrate import calibrate_artifact

    given = {"dataset": dataset or "folder", "root": root, "split": split}
    calibrate_artifact(
        artifact,
        out,
        cache=check_folder(cache or os.environ.get("DATAFREE_CACHE") or "cache", "--cache"),
        console=Console(stderr=True),
        photos=photos,
        labelled={name: value for name, value in given.items() if value} if root else None,
    )
