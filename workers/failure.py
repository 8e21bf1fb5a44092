"""Descriptions of failures of the system: the root cause first, then the traceback."""

from __future__ import annotations

import sys
import traceback
from errno import ENOENT


class DescribedFailure(RuntimeError):
    """A failure of the system whose message suffices: it is shown without a traceback."""


def describe(error: BaseException) -> str:
    """The root cause in one line, then the traceback, unless the line suffices."""
    if sentence := _sufficient(error):
        return f"failed: {sentence}"
    trace = "".join(traceback.format_exception(error))
    return f"failed: {in_one_line(error)}\n\n{trace.rstrip()}"


def in_one_line(error: BaseException) -> str:
    """The root cause: a sentence that suffices, or the class of the error and its message."""
    cause = root_cause(error)
    message = " ".join(str(cause).split()) or "no message"
    return _sufficient(error) or f"{type(cause).__name__}: {message[:1000]}"


def _sufficient(error: BaseException) -> str:
    """A sentence that needs no traceback, such as for a full disk; empty for other errors."""
    cause = root_cause(error, implied=False)
    if isinstance(cause, OSError) and cause.filename is not None:
        # When copying or renaming fails, either the source is missing or the target is at fault.
        target = None if cause.errno == ENOENT else cause.filename2
        return f"{target or cause.filename}: {cause.strerror}"
    if isinstance(cause, DescribedFailure | FileNotFoundError | PermissionError):
        return str(cause)
    ray_exceptions = sys.modules.get("ray.exceptions")
    if not ray_exceptions or not isinstance(root_cause(error), ray_exceptions.OutOfMemoryError):
        return ""
    return (
        "out of memory: Ray ended a worker because its node had hardly any memory left; run fewer "
        "at once (tuning.workers, knowledge.llm.engines, --workers), take smaller models, or nodes "
        "with more memory"
    )


def root_cause(error: BaseException, implied: bool = True) -> BaseException:
    """The first error of a chain, including errors of workers that Ray has wrapped.

    `implied`: whether to follow `__context__` too, not only `__cause__`.
    """
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        worker_failures = getattr(error, "worker_failures", None)
        chained = error.__context__ if implied and not error.__suppress_context__ else None
        inner = getattr(error, "cause", None) or error.__cause__ or chained
        if worker_failures:
            # When one worker fails, the others lose their connection to it and fail too.
            inner = min(worker_failures.values(), key=lambda e: _lost_connection(root_cause(e)))
        if not isinstance(inner, BaseException):
            return error
        error = inner
    return error


def _lost_connection(error: BaseException) -> bool:
    return isinstance(error, ConnectionError) or "onnection" in str(error)
