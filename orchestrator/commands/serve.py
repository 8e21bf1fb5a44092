"""`datafree serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.options import Cache
from orchestrator.errors import InputError
from orchestrator.interruption import say_if_stopped
from orchestrator.paths import cache_folder


def serve(
    artifacts: Annotated[
        list[str],
        typer.Argument(
            metavar="ARTIFACT…",
            help="Artifact folders, e.g. runs/quickstart/artifact; `starter` is the packaged one",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on")] = 8080,
    token: Annotated[
        str | None,
        typer.Option(
            help="Bearer token that clients must send (`ps` does not show $DATAFREE_TOKEN)"
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(help="Number of model replicas (default: one per GPU, or two on CPUs)"),
    ] = None,
    review: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also a page to review the tags of these images, and to improve the artifact",
        ),
    ] = None,
    cache: Cache = None,
) -> None:
    """Serve tags over HTTP, with a page to try them; updated artifacts are reloaded."""
    say_if_stopped("Stopped.")
    if not 0 < port < 65536:
        raise InputError(f"--port: must be between 1 and 65535 (got {port})")
    if replicas is not None and replicas < 1:
        raise InputError(f"--replicas: must be at least 1 (got {replicas})")
    token = token or os.environ.get("DATAFREE_TOKEN")
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise InputError("--token: must be printable ASCII without spaces")
    from orchestrator.tagging.serve import serve_artifacts

    serve_artifacts(
        artifacts,
        cache=cache_folder(cache),
        console=Console(stderr=True),
        host=host,
        port=port,
        token=token,
        replicas=replicas,
        review=review,
    )
