"""Start Ray on this machine, when RAY_ADDRESS names no cluster."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from orchestrator.cluster.token import given_mode, named_token
from orchestrator.errors import InputError
from orchestrator.paths import check_folder
from workers.failure import DescribedFailure

# A socket's path has at most 107 bytes; this is the longest path of Ray's below its folder. Without
# this socket the dashboard does not start, and Ray waits a minute for it.
_LONGEST_RAY_FOLDER = 107 - len(
    "/ray/session_2026-11-27_20-23-59_272619_4194304/sockets/dash_MetricsHead"
)


def check_local_ray() -> None:
    """Check that Ray can start here: its folder, the token. Raises InputError."""
    _check_ray_folder()
    _token_is_settled()


def _ray_folder() -> tuple[str, Path]:
    """The environment variable that chooses Ray's folder for temporary files, and the folder."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    return name, Path(os.environ.get(name, "/tmp"))


def _check_ray_folder() -> None:
    """Check that Ray can start in its folder for temporary files. Raises InputError."""
    name, folder = _ray_folder()
    length = len(os.fsencode(folder))
    if length > _LONGEST_RAY_FOLDER:
        raise InputError(
            f"{name}: must be at most {_LONGEST_RAY_FOLDER} bytes long, because Ray puts sockets "
            f"below it (got {length}: {folder}); set {name}=/tmp, for example"
        )
    check_folder(str(folder), name)


def _token_is_settled() -> bool:
    """Whether the environment names a token, or says that there is none. Raises InputError."""
    return given_mode() == "disabled" or named_token() is not None


def start_ray(cpus: int | None, gpus: int | None, dashboard: bool) -> None:
    """Start Ray on this machine, and retry once, because the machine may have been busy.

    Raises:
        InputError: when the token that the environment names is unusable.
        OSError: when Ray cannot write its files.
        DescribedFailure: when both attempts fail.
    """
    if not _token_is_settled():
        # Otherwise Ray writes a token into the home folder, which may not be writable.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    reason = ""
    for _ in range(2):
        reason = _try_to_start(cpus, gpus, dashboard)
        if not reason:
            return
    _, folder = _ray_folder()
    raise DescribedFailure(
        f"Ray did not start on this machine in two attempts: {reason} The load is "
        f"{os.getloadavg()[0]:.0f} on {os.cpu_count()} CPUs, and {folder} has "
        f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free; Ray's logs are in "
        f"{folder}/ray/session_latest/logs"
    )


def _try_to_start(cpus: int | None, gpus: int | None, dashboard: bool) -> str:
    """Start Ray; return why it failed, or "". Raises OSError when it cannot write its files."""
    import psutil
    import ray
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    # This process caches the first token that it reads; Ray's other processes read at their start.
    AuthenticationTokenLoader.instance().reset_cache()
    others = set(psutil.Process().children(recursive=True))
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        return ""
    except OSError:
        raise
    except Exception as error:  # Ray raises a bare Exception when one of its processes is late
        ray.shutdown()
        for process in set(psutil.Process().children(recursive=True)) - others:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return " ".join(str(error).split())[:300]
