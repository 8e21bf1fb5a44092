"""The token of a Ray cluster: where this machine keeps it, and whether it may be sent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import InputError

_WHERE = "in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token"


class Token(NamedTuple):
    """A token, and where it was found."""

    value: str
    place: str


def given_mode() -> str | None:
    """RAY_AUTH_MODE: token, disabled, or None if it is not set.

    Raises InputError for anything else, which Ray silently takes for "disabled".
    """
    given = os.environ.get("RAY_AUTH_MODE")
    mode = given.lower() if given is not None else None
    if mode not in (None, "token", "disabled"):
        raise InputError(f"RAY_AUTH_MODE: must be token or disabled, or not set (got {given!r})")
    return mode


def find_token() -> Token | None:
    """The Ray token of this machine where Ray looks for it, or None.

    `ray start` requires a token from clients if the machine has one, and a local Ray leaves one
    behind.

    Raises InputError as `named_token`, and when the file in the home folder has no token in it.
    """
    if named := named_token():
        return named
    try:
        path = Path.home() / ".ray" / "auth_token"
        value = path.read_bytes().decode("utf-8", "replace")
    except (OSError, RuntimeError):  # there is no file, or no home
        return None
    return _checked(value, str(path)) if value.strip() else None


def named_token() -> Token | None:
    """The token that the environment names, or None.

    Raises InputError when RAY_AUTH_TOKEN_PATH cannot be read, or what is there cannot be a token.
    """
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return _checked(given, "RAY_AUTH_TOKEN")
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        try:
            return _checked(Path(named).read_bytes().decode("utf-8", "replace"), named)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(f"RAY_AUTH_TOKEN_PATH: {named!r} cannot be read ({why})") from None
    return None


def _checked(value: str, place: str) -> Token:
    """Ray ends the whole process when a token cannot stand in a header."""
    token = value.strip()
    if not token or not all("!" <= character <= "~" for character in token):
        raise InputError(
            f"{place}: must be a token: visible ASCII characters without spaces; "
            "`ray get-auth-token` prints it on the head"
        )
    return Token(token, place)


def refusal(cluster: str, mode: str | None, token: Token | None) -> InputError:
    """What to set when `cluster` asks for a token. `token`: the one that it did not accept."""
    if mode == "disabled":
        return InputError(
            f"{cluster}: this cluster asks for a token, but RAY_AUTH_MODE is disabled here; unset "
            f"it, with the token {_WHERE}"
        )
    if token:
        return InputError(
            f"{cluster}: this cluster does not accept the token in {token.place}; "
            "`ray get-auth-token` prints it on the head"
        )
    return InputError(
        f"{cluster}: this cluster asks for a token: put it {_WHERE}; `ray get-auth-token` prints "
        "it on the head"
    )
