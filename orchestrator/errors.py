"""The error for mistakes in the input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Invalid input: shown as one clear line without a traceback, with exit code 2."""


@contextmanager
def as_input_error(place: str = "") -> Iterator[None]:
    """Turn a ValueError in the block into an InputError that begins with `place`."""
    try:
        yield
    except ValueError as error:
        lines = (line.strip() for line in str(error).splitlines())
        raise InputError(place + " ".join(lines)) from None
