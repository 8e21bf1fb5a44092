"""What a run needs against what is here, before anything starts."""

from __future__ import annotations

import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config_file import InputError

if TYPE_CHECKING:
    from orchestrator.config import RunConfig
    from workers.knowledge_pool import Placement

# Below this, workers only wait for each other and fill the memory.
_LEAST_CPUS_A_WORKER = 0.25


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs of this machine, or of the cluster that RAY_ADDRESS names."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class WorkerShare:
    """What each tuning worker gets."""

    cpus: float
    gpus: float


def find_resources() -> Resources:
    """Ask the cluster where there is one, else look at this machine without starting anything.

    Raises:
        InputError: when nothing answers at RAY_ADDRESS.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address:
        import ray

        from orchestrator.cluster import connect

        try:
            _knock(address)
            connect()
        except OSError:
            raise InputError(f"RAY_ADDRESS: no Ray cluster answers at {address!r}") from None

        total = ray.cluster_resources()
        return Resources(int(total.get("CPU", 0)), int(total.get("GPU", 0)))
    return local_resources()


def _knock(address: str) -> None:
    """Raise OSError when nobody listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def local_resources() -> Resources:
    """What this machine lets this process use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    else:
        gpus = len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return Resources(len(os.sched_getaffinity(0)), gpus)


def place_engines(config: RunConfig, resources: Resources) -> Placement:
    """How many engines run and on what.

    Raises:
        InputError: naming the field that asks for more than there is.
    """
    # Inside, for it brings Ray, and `doctor` looks at a machine without waiting for that.
    from workers.knowledge_pool import Placement

    llm = config.knowledge.llm
    on_gpu = resources.gpus > 0
    if llm.tensor_parallel > 1 and resources.gpus < llm.tensor_parallel:
        raise InputError(
            f"knowledge.llm.tensor_parallel: {llm.tensor_parallel} GPUs an engine, "
            f"but {_have(resources)}"
        )
    gpus = llm.tensor_parallel if on_gpu else 0
    by_gpu = resources.gpus // gpus if gpus else 1
    engines = by_gpu if llm.engines == "auto" else llm.engines
    alone = 1 if on_gpu else max(1, resources.cpus // engines)
    cpus = alone if llm.cpus_per_engine == "auto" else llm.cpus_per_engine
    if engines * cpus > resources.cpus or engines * gpus > resources.gpus:
        raise InputError(
            f"knowledge.llm.engines: {engines} with {cpus} CPUs and {gpus} GPUs each can never be "
            f"scheduled: {_have(resources)}; lower engines or cpus_per_engine"
        )
    return Placement(engines, cpus, gpus)


def place_workers(config: RunConfig, resources: Resources) -> WorkerShare:
    """What each tuning worker gets.

    Raises:
        InputError: naming the field that asks for more than there is.
    """
    tuning = config.tuning
    enough_gpus = resources.gpus >= tuning.workers
    gpus = float(enough_gpus) if tuning.gpus_per_worker == "auto" else tuning.gpus_per_worker
    share = max(_LEAST_CPUS_A_WORKER, min(1.0, resources.cpus / tuning.workers))
    cpus = share if tuning.cpus_per_worker == "auto" else tuning.cpus_per_worker
    if tuning.workers * cpus > resources.cpus or tuning.workers * gpus > resources.gpus:
        raise InputError(
            f"tuning.workers: {tuning.workers} with {cpus:g} CPUs and {gpus:g} GPUs each can never "
            f"be scheduled: {_have(resources)}; lower workers, cpus_per_worker or gpus_per_worker"
        )
    return WorkerShare(cpus, gpus)


def check_writable(folder: Path, field: str) -> None:
    """Raise InputError when a folder cannot be made or written to; leaves nothing behind."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(f"{field}: {folder} cannot be written to ({error.strerror})") from None


def _have(resources: Resources) -> str:
    return f"there are {resources.cpus} CPUs and {resources.gpus} GPUs"
