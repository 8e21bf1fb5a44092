"""How a failure of the system is told: the root cause first, then the way to it."""

from __future__ import annotations

import traceback


def describe(error: BaseException) -> str:
    """The root cause in one line, then the traceback for those who want it."""
    cause = root_cause(error)
    message = " ".join(str(cause).split()) or "no message"
    trace = "".join(traceback.format_exception(error))
    return f"failed: {type(cause).__name__}: {message[:1000]}\n\n{trace.rstrip()}"


def root_cause(error: BaseException) -> BaseException:
    """The first error of a chain; Ray wraps the one that a worker raised."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        worker_failures = getattr(error, "worker_failures", None)
        inner = (
            next(iter(worker_failures.values()), None)
            if worker_failures
            else getattr(error, "cause", None) or error.__cause__ or error.__context__
        )
        if not isinstance(inner, BaseException):
            return error
        error = inner
    return error
