"""`datafree serve`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.commands.options import Cache
from orchestrator.config.messages import validate
from orchestrator.config.yaml import read_yaml
from orchestrator.errors import InputError
from orchestrator.interruption import say_if_stopped
from orchestrator.paths import cache_folder
from workers.serving.limits import Limits


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
        str | None,
        typer.Option(
            metavar="N or N-M",
            help="Number of model replicas (default: one per GPU, or two on CPUs); `1-4`: as many "
            "as the requests need",
        ),
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file with other limits (docs/serving.md)"),
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
    copies = None if replicas is None else _least_and_most(replicas)
    accepted = validate(Limits, read_yaml(limits), str(limits)) if limits else Limits()
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
        replicas=copies,
        limits=accepted,
        review=review,
    )


def _least_and_most(replicas: str) -> tuple[int, int]:
    """The numbers of N or N-M. Raises InputError."""
    numbers = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", replicas)
    if not numbers:
        raise InputError(f"--replicas: must be a number, or two as in 1-4 (got {replicas})")
    least, most = int(numbers[1]), int(numbers[2] or numbers[1])
    if least < 1:
        raise InputError(f"--replicas: must be at least 1 (got {replicas})")
    if most < least:
        raise InputError(f"--replicas: must not fall (got {replicas})")
    return least, most
