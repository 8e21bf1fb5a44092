"""The error for mistakes in the input."""

from __future__ import annotations


class InputError(ValueError):
    """Invalid input: shown as one clear line without a traceback, with exit code 2."""
