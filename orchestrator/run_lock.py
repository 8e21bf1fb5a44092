"""A lock on a run's folder: two processes would overwrite each other's checkpoints."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import InputError


@contextmanager
def only_driver(run_folder: Path, field: str = "name") -> Iterator[None]:
    """Lock a run's folder for this process; the kernel releases it however the process ends.

    `field`: the option or config field that names the folder. Raises InputError if another process
    has the lock.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    # Never emptied: a folder of photos may have a .lock of somebody else.
    with (run_folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{field}: another process is working on {run_folder}; "
                "wait for it, or choose another folder"
            ) from None
        yield
