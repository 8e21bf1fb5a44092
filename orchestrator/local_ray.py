"""Ray on this machine, for commands to which RAY_ADDRESS names no cluster."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from pathlib import Path

from orchestrator.config_file import InputError
from orchestrator.preflight import check_folder
from workers.failure import DescribedFailure

# A socket's path has 107 bytes, and this is the longest one of Ray's below its folder.
_LONGEST_FOLDER = 107 - len("/ray/session_2026-11-27_20-23-59_272619_4194304/sockets/plasma_store")


def check_ray_folder() -> None:
    """Refuse a folder for temporary files in which Ray cannot start.

    Raises:
        InputError: naming the environment variable that chooses it.
    """
    name, folder = _ray_folder()
    length = len(os.fsencode(folder))
    if length > _LONGEST_FOLDER:
        raise InputError(
            f"{name}: must be at most {_LONGEST_FOLDER} bytes long, for Ray has sockets below it "
            f"(got {length}: {folder}); {name}=/tmp would do"
        )
    check_folder(str(folder), name)


def start_ray(cpus: int | None, gpus: int | None) -> None:
    """Start Ray here; once more if it does not come up, for the machine may have been busy.

    Raises:
        OSError: when Ray cannot write its files.
        DescribedFailure: when it comes up neither time.
    """
    # Else Ray would write one into the home folder, which may not be writable.
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if not (reason := _try_to_start(cpus, gpus)):
        return
    if not (reason := _try_to_start(cpus, gpus)):
        return
    _, folder = _ray_folder()
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
            # Quiet, for the run prints its own progress.
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        return ""
    except OSError:
        raise
    except Exception as error:  # Ray raises just that when a process of its own is late
        for process in set(psutil.Process().children(recursive=True)) - others:
            process.kill()
        return " ".join(str(error).split())[:300]


def _ray_folder() -> tuple[str, Path]:
    """Where Ray puts its files, and the environment variable that chooses it."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    return name, Path(os.environ.get(name, "/tmp"))
