"""How a failure of the system is told: the root cause first, then the way to it."""

from __future__ import annotations

import traceback


class DescribedFailure(RuntimeError):
    """A failure of the system whose message says all that a person needs, so without traceback."""


def describe(error: BaseException) -> str:
    """The root cause in one line, then the traceback for those who want it.

    Nobody wants it of a full disk, a vanished file or a folder that cannot be written to.
    """
    plain = root_cause(error, implied=False)
    if isinstance(plain, OSError) and plain.filename is not None:
        return f"failed: {plain.filename2 or plain.filename}: {plain.strerror}"
    if isinstance(plain, DescribedFailure | FileNotFoundError | PermissionError):
        return f"failed: {plain}"
    cause = root_cause(error)
    message = " ".join(str(cause).split()) or "no message"
    trace = "".join(traceback.format_exception(error))
    return f"failed: {type(cause).__name__}: {message[:1000]}\n\n{trace.rstrip()}"


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
