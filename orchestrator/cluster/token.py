"""Find the token of a Ray cluster where Ray looks for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Token(NamedTuple):
    """A token, and where it was found."""

    value: str
    place: str


def find_token() -> Token | None:
    """The Ray token of this machine, or None.

    `ray start` requires a token from clients if the machine has one, and a local Ray leaves one
    behind. Ray's clients send it only if RAY_AUTH_MODE says so.
    """
    if value := os.environ.get("RAY_AUTH_TOKEN"):
        return Token(value, "RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        value = path.read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
    return Token(value, str(path)) if value else None
