"""The CPUs and GPUs of this machine or of the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from joblib import cpu_count

from orchestrator.cluster.connect import connect
from orchestrator.cluster.local_ray import check_local_ray
from orchestrator.errors import InputError

# n / (n / k) may come out just below k.
_ROUNDING = 1e-9

# Ray's own resources; every other one is a pool.
_RAYS_OWN = ("CPU", "GPU", "TPU", "memory", "object_store_memory")
_RAYS_PREFIXES = ("node:", "accelerator_type:")


@dataclass(frozen=True)
class Node:
    """A machine. `accelerator`: its GPU model. `pools`: the custom Ray resources it advertises."""

    cpus: int
    gpus: int
    accelerator: str = ""
    pools: frozenset[str] = frozenset()

    def holds(self, cpus: float, gpus: float) -> int:
        """How many actors with these CPUs and GPUs fit here at once."""
        by_cpu = int(self.cpus / cpus + _ROUNDING)
        return min(by_cpu, int(self.gpus / gpus + _ROUNDING)) if gpus else by_cpu


@dataclass(frozen=True)
class Resources:
    """This machine, or the nodes of the cluster that RAY_ADDRESS names."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> int:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)

    def threads(self) -> int:
        """How many threads a task may use that is alone on the smallest node that runs tasks."""
        return max(1, min((node.cpus for node in self.nodes if node.cpus), default=1))

    def holds(self, cpus: float, gpus: float) -> int:
        """How many actors with these CPUs and GPUs, each on one node, fit at once."""
        return sum(node.holds(cpus, gpus) for node in self.nodes)

    def in_pool(self, pool: str | None, field: str) -> Resources:
        """The nodes that advertise the pool, or all nodes if `pool` is None. Raises InputError."""
        if not self.nodes:
            raise InputError(f"{field}: no node of the cluster is up")
        nodes = tuple(node for node in self.nodes if pool is None or pool in node.pools)
        if not nodes:
            there = sorted({name for node in self.nodes for name in node.pools})
            raise InputError(
                f"{field}: no node advertises the custom resource {pool!r}; "
                f"the nodes advertise: {', '.join(there) or 'none'}"
            )
        return Resources(nodes)

    def __str__(self) -> str:
        on = f" on {len(self.nodes)} nodes" if len(self.nodes) > 1 else ""
        return f"there are {self.cpus} CPUs and {self.gpus} GPUs{on}"


def find_resources() -> Resources:
    """The nodes of the cluster at RAY_ADDRESS, else this machine, without starting Ray.

    Raises InputError when no cluster at RAY_ADDRESS answers or accepts our token, or Ray cannot
    start on this machine.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        check_local_ray()
        return Resources((local_node(),))
    import ray

    try:
        connect()
    except ConnectionError as error:
        why = " ".join(str(error.__cause__ or error).split())[:300]
        raise InputError(
            f"RAY_ADDRESS: {address} cannot be joined from this machine, which must be a node of "
            f"the cluster; `datafree submit` runs a config there ({why})"
        ) from None
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Resources(tuple(ray_node(resources) for resources in nodes))


def ray_node(resources: dict[str, float]) -> Node:
    """A node from its resources as Ray lists them."""
    kinds = [name for name in resources if name.startswith("accelerator_type:")]
    accelerator = kinds[0].partition(":")[2] if kinds else ""
    pools = frozenset(
        name for name in resources if name not in _RAYS_OWN and not name.startswith(_RAYS_PREFIXES)
    )
    return Node(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)), accelerator, pools)


def visible_gpus() -> int:
    """How many GPUs this process can see, even if the installed torch cannot use them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(list(Path("/dev").glob("nvidia[0-9]*")))
    return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])


def local_node() -> Node:
    """The CPUs and GPUs that this process can use; no GPUs if torch is built for CPUs."""
    try:
        torch_uses_gpus = not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        torch_uses_gpus = False
    gpus = visible_gpus() if torch_uses_gpus else 0
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")) if gpus else []
    models = re.findall(r"^Model:\s*(.+)$", files[0].read_text(), re.M) if files else []
    return Node(cpu_count(), gpus, *models)
