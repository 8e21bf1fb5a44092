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
        chained = None if error.__suppress_context__ else error.__context__
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
