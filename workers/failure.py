"""How a failure of the system is told: the root cause first, then the way to it."""

from __future__ import annotations

import sys
import traceback


def describe(error: BaseException) -> str:
    """The root cause in one line, then the traceback for those who want it.

    Of a worker that ran out of memory the line alone, which says it all.
    """
    line = in_one_line(error)
    if out_of_memory(error):
        return f"failed: {line}"
    trace = "".join(traceback.format_exception(error))
    return f"failed: {line}\n\n{trace.rstrip()}"


def in_one_line(error: BaseException) -> str:
    """The root cause: its kind and its message, or what to do about too little memory."""
    cause = root_cause(error)
    message = " ".join(str(cause).split()) or "no message"
    return out_of_memory(error) or f"{type(cause).__name__}: {message[:1000]}"


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
