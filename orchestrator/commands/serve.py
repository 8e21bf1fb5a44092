"""`datafree serve`."""

from __future__ import annotations

import os

from rich.console import Console

from orchestrator.console import quieten_libraries
from orchestrator.errors import InputError
from orchestrator.interruption import say_if_stopped
from orchestrator.paths import check_folder


def serve(
    artifacts: list[str],
    host: str,
    port: int,
    token: str | None,
    replicas: int | None,
    cache: str | None,
) -> None:
    """Check what is asked, then serve until stopped."""
    say_if_stopped("Stopped.")
    quieten_libraries()
    if not 0 < port < 65536:
        raise InputError(f"--port: {port} is no port; 1 to 65535 are")
    if replicas is not None and replicas < 1:
        raise InputError(f"--replicas: {replicas} is too few; 1 is the least")
    token = token or os.environ.get("DATAFREE_TOKEN")
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise InputError("--token: letters, digits and signs of ASCII without spaces are wanted")
    from orchestrator.tagging.serve import serve_artifacts

    serve_artifacts(
        artifacts,
        cache=check_folder(cache or os.environ.get("DATAFREE_CACHE") or "cache", "--cache"),
        console=Console(stderr=True),
        host=host,
        port=port,
        token=token,
        replicas=replicas,
    )
