"""Ray on this machine, for commands to which RAY_ADDRESS names no cluster."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from workers.failure import DescribedFailure


def ray_folder() -> tuple[str, Path]:
    """Where Ray puts its files, and the environment variable that chooses it."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    return name, Path(os.environ.get(name, "/tmp"))


def start_ray(cpus: int | None, gpus: int | None) -> None:
    """Start Ray here; once more if it does not come up, for the machine may have been busy.

    Raises:
        OSError: when Ray cannot write its files.
        DescribedFailure: when it comes up neither time.
    """
    # Else Ray would write one into the home folder, which may not be writable.
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    reason = _try_to_start(cpus, gpus) and _try_to_start(cpus, gpus)
    if not reason:
        return
    _, folder = ray_folder()
    raise DescribedFailure(
        f"Ray did not start on this machine, twice: {reason} The load is {os.getloadavg()[0]:.0f} "
        f"on {os.cpu_count()} CPUs, and {folder} has {shutil.disk_usage(folder).free / 1e9:.1f} GB "
        f"free; Ray's logs are in {folder}/ray/session_latest/logs"
    )


def _try_to_start(cpus: int | None, gpus: int | None) -> str:
    """Why Ray has not come up, empty if it has. Raises OSError when it cannot write its files."""
    import psutil
    import ray

    others = set(psutil.Process().children(recursive=True))
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,
            # Nobody looks at it here, and it takes 2 s to start; below a long folder, a minute.
            include_dashboard=False,
            # Quiet, for the run prints its own progress.
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        return ""
    except OSError:
        raise
    except Exception as error:  # Ray raises just that when a process of its own is late
        ray.shutdown()
        for process in set(psutil.Process().children(recursive=True)) - others:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return " ".join(str(error).split())[:300]
