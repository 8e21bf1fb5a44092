"""The error that a person can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Invalid input from a person: one clear line, exit code 2, no traceback."""
