"""`datafree export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.options import Artifact, Cache
from orchestrator.interruption import say_if_stopped


def export(
    artifact: Artifact,
    onnx: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write an ONNX file, from pixels to calibrated scores"),
    ] = None,
    hf: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write the artifact with a model card, for a hub"),
    ] = None,
    cache: Cache = None,
) -> None:
    """Export an artifact as an ONNX file, or as a folder with a model card."""
    say_if_stopped("Stopped. The same command starts again.")
    from orchestrator.runs.export import export_artifact

    export_artifact(artifact, onnx, hf, cache)
