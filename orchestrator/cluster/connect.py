"""Connect to the Ray cluster at RAY_ADDRESS, or start Ray on this machine."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.cluster.local_ray import start_ray


def connect(cpus: int | None = None, gpus: int | None = None, dashboard: bool = True) -> None:
    """Join the cluster at RAY_ADDRESS, or start Ray here with `cpus` and `gpus`; only once.

    Without RAY_ADDRESS, a Ray that already runs on this machine is not joined. `dashboard`: whether
    to start it here too, which takes 2 s. Only Ray Train needs it, to ask which of its actors live.

    Raises:
        InputError: when the cluster does not answer, or does not accept our token.
        OSError, DescribedFailure: as `start_ray`.
    """
    import ray

    if ray.is_initialized():
        return
    # Ray Train polls its workers, by default every 2 s. Until a poll, a checkpoint can be lost
    # with its worker, and a finished seed waits.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Saves a process per tuning; workers of a preempted node are restarted anyway.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # By default Ray retries a task that ran out of memory forever.
    os.environ.setdefault("RAY_task_oom_retries", "3")
    address = os.environ.get("RAY_ADDRESS")
    with _signal_handlers_kept():
        if address:
            from orchestrator.cluster.access import accessible

            head = accessible(address)
            ray.init(address=head, log_to_driver=False, logging_level=logging.ERROR)
        else:
            # Many small workers start at once, also on few cores.
            os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
            # Since 2.60 Ray does not hide the GPUs from tasks that ask for none.
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
            start_ray(cpus, gpus, dashboard)
    # Hides Ray's long messages about retries.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None


def disconnect() -> None:
    """Disconnect from Ray if it was joined; a local Ray ends."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restore the handlers of SIGINT and SIGTERM after the block, in which Ray sets its own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
