"""Failures of the system are told with their root cause first."""

from __future__ import annotations

from workers.failure import describe


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_the_first_error_of_a_chain_comes_first() -> None:
    try:
        try:
            raise OSError("no space left on device")
        except OSError as error:
            raise RuntimeError("the stage failed") from error
    except RuntimeError as error:
        told = describe(error)
    assert told.startswith("failed: OSError: no space left on device\n")
    assert "the stage failed" in told


def test_what_was_suppressed_is_no_cause() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError:
            raise RuntimeError("the model cannot be loaded") from None
    except RuntimeError as error:
        told = describe(error)
    assert told.startswith("failed: RuntimeError: the model cannot be loaded\n")


def test_the_worker_that_failed_comes_before_those_that_lost_it() -> None:
    failure = RuntimeError("training failed")
    lost = raised(RuntimeError("Connection closed by peer [127.0.0.1]"))
    own = raised(FloatingPointError("the loss is nan at epoch 2, step 3"))
    failure.worker_failures = {0: lost, 1: own}  # type: ignore[attr-defined]
    assert describe(failure).startswith("failed: FloatingPointError: the loss is nan at epoch 2")
