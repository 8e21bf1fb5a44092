"""The error for mistakes in what a person asked for."""

from __future__ import annotations


class InputError(ValueError):
    """Invalid input: shown as one clear line without a traceback, with exit code 2."""
