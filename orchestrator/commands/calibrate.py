"""`datafree calibrate`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.options import Artifact, Cache, Split
from orchestrator.errors import InputError
from orchestrator.interruption import say_if_stopped
from orchestrator.paths import cache_folder


def calibrate(
    artifact: Artifact,
    out: Annotated[Path, typer.Option(help="Folder for the new artifact")],
    photos: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH…]", help="Unlabelled photos: files, folders or patterns"),
    ] = None,
    root: Annotated[str | None, typer.Option(help="Folder of labelled photos")] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Format of --root: folder (default), coco_json, voc_xml …"),
    ] = None,
    split: Split = None,
    cache: Cache = None,
) -> None:
    """Fit scores and thresholds to your photos: a few with labels, or any without."""
    say_if_stopped("Stopped. The same command starts again.")
    warnings.filterwarnings("ignore", module="PIL")
    if bool(photos) == bool(root):
        raise InputError(
            "name either unlabelled photos or --root with labelled ones "
            f"(got {'both' if photos else 'neither'})"
        )
    if (dataset or split) and not root:
        raise InputError(f"--{'dataset' if dataset else 'split'}: only goes with --root")
    from orchestrator.tagging.calibrate import calibrate_artifact

    given = {"dataset": dataset or "folder", "root": root, "split": split}
    calibrate_artifact(
        artifact,
        out,
        cache=cache_folder(cache),
        console=Console(stderr=True),
        photos=photos or [],
        labelled={name: value for name, value in given.items() if value} if root else None,
    )
