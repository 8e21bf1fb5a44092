"""The Ray cluster of a run: the one that RAY_ADDRESS names, or one on this machine."""

from __future__ import annotations

import logging
import os


def connect() -> None:
    """Start or join Ray, once; quiet, for the run prints its own progress."""
    import ray

    if ray.is_initialized():
        return
    # Worker processes shall read models from where we say, never ask a hub behind one's back.
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "120")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)


def disconnect() -> None:
    """Leave Ray if it was joined; a local cluster ends with it."""
    import sys

    if "ray" in sys.modules:
        import ray

        ray.shutdown()
