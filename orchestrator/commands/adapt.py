"""`datafree adapt`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.options import Artifact, Cache, Split
from orchestrator.interruption import say_if_stopped
from orchestrator.paths import cache_folder


def adapt(
    artifact: Artifact,
    root: Annotated[str, typer.Option(help="Folder of labelled photos")],
    out: Annotated[Path, typer.Option(help="Folder for the new artifact")],
    dataset: Annotated[
        str,
        typer.Option(help="Format of --root: folder, label_studio, cvat, coco_json, xmp …"),
    ] = "folder",
    split: Split = None,
    cache: Cache = None,
) -> None:
    """Learn from labelled photos, five or more: better scores, thresholds and class features."""
    say_if_stopped("Stopped. The same command starts again.")
    warnings.filterwarnings("ignore", module="PIL")
    from orchestrator.tagging.adapt import adapt_artifact

    adapt_artifact(
        artifact,
        out,
        {"dataset": dataset, "root": root, **({"split": split} if split else {})},
        cache=cache_folder(cache),
        console=Console(stderr=True),
    )
