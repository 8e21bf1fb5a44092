"""One driver a run: two at once would write over each other's checkpoints."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import InputError


@contextmanager
def only_driver(run_folder: Path, field: str = "name") -> Iterator[None]:
    """Hold the run for this process; the kernel lets go of it however the process ends.

    `field`: what a person would change.

    Raises:
        InputError: when another process holds it.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    with (run_folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{field}: another process is at work on {run_folder}; "
                "wait for it, or choose another"
            ) from None
        yield
