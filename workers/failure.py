"""How a failure of the system is told: the root cause first, then the way to it."""

from __future__ import annotations

import sys
import traceback
from errno import ENOENT


class DescribedFailure(RuntimeError):
    """A failure of the system whose message says all that a person needs, so without traceback."""


def describe(error: BaseException) -> str:
    """The root cause in one line, then the traceback for those who want it.

    Nobody wants it of a full disk, a vanished file, a folder that cannot be written to, or a worker
    that ran out of memory.
    """
    if said := _all_said(error):
        return f"failed: {said}"
    trace = "".join(traceback.format_exception(error))
    return f"failed: {in_one_line(error)}\n\n{trace.rstrip()}"


def in_one_line(error: BaseException) -> str:
    """The root cause: its kind and its message, or the sentence that says all."""
    cause = root_cause(error)
    message = " ".join(str(cause).split()) or "no message"
    return _all_said(error) or f"{type(cause).__name__}: {message[:1000]}"


def _all_said(error: BaseException) -> str:
    """A sentence that needs no traceback, where there is one for this error; else nothing."""
    cause = root_cause(error, implied=False)
    if isinstance(cause, OSError) and cause.filename is not None:
        # Of a copy or a renaming what is missing is the source, and else the target is to blame.
        target = None if cause.errno == ENOENT else cause.filename2
        return f"{target or cause.filename}: {cause.strerror}"
    if isinstance(cause, DescribedFailure | FileNotFoundError | PermissionError):
        return str(cause)
    return out_of_memory(error)


def out_of_memory(error: BaseException) -> str:
    """What to do if Ray has ended a worker for lack of memory, in a sentence; else nothing."""
    ray_exceptions = sys.modules.get("ray.exceptions")
    cause = root_cause(error)
    if ray_exceptions is None or not isinstance(cause, ray_exceptions.OutOfMemoryError):
        return ""
    return (
        "out of memory: Ray ended a worker because its node had hardly any memory left; run fewer "
        "at once (tuning.workers, knowledge.llm.engines, --workers), take smaller models, or nodes "
        "with more memory"
    )


def root_cause(error: BaseException, implied: bool = True) -> BaseException:
    """The first error of a chain; Ray wraps the one that a worker raised.

    `implied`: also past errors that were caught when the next one was raised.
    """
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        worker_failures = getattr(error, "worker_failures", None)
        chained = error.__context__ if implied and not error.__suppress_context__ else None
        inner = getattr(error, "cause", None) or error.__cause__ or chained
        if worker_failures:
            # When one worker fails, the others fail too, of the broken connection to it.
            inner = min(worker_failures.values(), key=lambda e: _is_collateral(root_cause(e)))
        if not isinstance(inner, BaseException):
            return error
        error = inner
    return error


def _is_collateral(error: BaseException) -> bool:
    return isinstance(error, ConnectionError) or "onnection" in str(error)
