"""The Ray cluster of a run: the one that RAY_ADDRESS names, or one on this machine."""

from __future__ import annotations

import logging
import os
import sys

from orchestrator.cluster.local_ray import start_ray
from orchestrator.interruption import handlers_kept


def connect(cpus: int | None = None, gpus: int | None = None) -> None:
    """Join the cluster, or start Ray here with what the plan counts on; once.

    `RAY_ADDRESS` decides, and only that: a Ray that somebody left running here is not joined.
    """
    import ray

    if ray.is_initialized():
        return
    # Ray Train looks at its workers each 2 s: until then a checkpoint can be lost with its worker,
    # and a finished seed waits.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # A process less for each tuning: workers of a node that goes are started again anyway.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # By default a task that Ray ends for lack of memory starts again without end.
    os.environ.setdefault("RAY_task_oom_retries", "3")
    address = os.environ.get("RAY_ADDRESS")
    with handlers_kept():
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:  # many small processes start at once here, and that is meant
            os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
            start_ray(cpus, gpus)
    # Nor its pages about what it tries again.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None


def disconnect() -> None:
    """Leave Ray if it was joined; a local cluster ends with it."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()
