"""The CPUs and GPUs of this machine or of the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from joblib import cpu_count

from orchestrator.cluster.connect import connect
from orchestrator.cluster.local_ray import check_local_ray
from orchestrator.errors import InputError
from workers.placement import NodeSettings, Placement, fits_labels, holds

if TYPE_CHECKING:
    from orchestrator.config.models import RunConfig

_log = logging.getLogger(__name__)

# Ray's own resources; every other one is a pool, also `accelerator_type:L4`.
_RAYS_OWN = ("CPU", "GPU", "TPU", "memory", "object_store_memory")
_RAYS_PREFIX = "node:"
# A label that Ray gives each node: nobody chooses nodes by it.
_NODE_ID = "ray.io/node-id"


@dataclass(frozen=True)
class Node:
    """A machine. `accelerator`: its GPU model. `pools`: the custom Ray resources it advertises.
    `labels`: Ray's node labels."""

    cpus: int
    gpus: int
    accelerator: str = ""
    pools: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)

    def holds(self, cpus: float, gpus: float) -> int:
        """How many actors with these CPUs and GPUs fit here at once."""
        return holds({"CPU": self.cpus, "GPU": self.gpus}, {"CPU": cpus, "GPU": gpus})

    def suits(self, chosen: NodeSettings) -> bool:
        """Whether the node is one of those that the settings choose."""
        in_pool = chosen.pool is None or chosen.pool in self.pools
        return in_pool and fits_labels(self.labels, chosen.node_labels)


@dataclass(frozen=True)
class Resources:
    """This machine, or the nodes of the cluster that RAY_ADDRESS names.

    `may_grow`: whether an autoscaler may add nodes. Ray does not report their kinds and numbers.
    """

    nodes: tuple[Node, ...]
    may_grow: bool = False

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

    def chosen_by(self, chosen: NodeSettings, field: str) -> Resources:
        """The nodes that the settings in `field` choose. Raises InputError when there is none."""
        if not self.nodes:
            raise InputError(f"{field}.pool: no node of the cluster is up")
        nodes = tuple(node for node in self.nodes if node.suits(chosen))
        if not nodes:
            later = "; a run waits for one that the cluster adds" if self.may_grow else ""
            raise InputError(f"{field}.{self._lack(chosen)}{later}")
        return replace(self, nodes=nodes)

    def _lack(self, chosen: NodeSettings) -> str:
        pools = {name for node in self.nodes for name in node.pools}
        if chosen.pool is not None and chosen.pool not in pools:
            return (
                f"pool: no node advertises the custom resource {chosen.pool!r}; "
                f"the nodes advertise: {', '.join(sorted(pools)) or 'none'}"
            )
        in_pool = [node for node in self.nodes if chosen.pool is None or chosen.pool in node.pools]
        there = {
            f"{key}: {value}"
            for node in in_pool
            for key, value in node.labels.items()
            if key != _NODE_ID
        }
        asked = ", ".join(f"{key}: {value}" for key, value in chosen.node_labels.items())
        of_pool = f" of the pool {chosen.pool!r}" if chosen.pool else ""
        return (
            f"node_labels: no node{of_pool} has {asked}; "
            f"the nodes have: {', '.join(sorted(there)) or 'none'}"
        )

    def lacks(self, chosen: NodeSettings) -> bool:
        """Whether none of the nodes suits these settings, but one may come."""
        return self.may_grow and not any(node.suits(chosen) for node in self.nodes)

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
    from workers.autoscaler import autoscales

    nodes = [ray_node(node["Resources"], node["Labels"]) for node in ray.nodes() if node["Alive"]]
    return Resources(tuple(nodes), autoscales())


def wait_for_nodes(resources: Resources, config: RunConfig, tunes: bool = True) -> Resources:
    """Where no node suits a config but the cluster may grow, wait until one has come.

    What an engine or a worker gets, and what engines answer, depends on the kind of its node.
    `tunes`: whether tuning workers are needed too.

    Raises DescribedFailure when no node comes within `wait_minutes`.
    """
    wanted: dict[str, NodeSettings] = {"tuning": config.tuning} if tunes else {}
    if config.knowledge.questions.asks_something and config.knowledge.llm.source != "file":
        wanted = {"knowledge.llm": config.knowledge.llm, **wanted}
    missing = {field: nodes for field, nodes in wanted.items() if resources.lacks(nodes)}
    if not missing:
        return resources
    from workers.waiting import Waiting

    for where, nodes in missing.items():
        one = Placement(1, 1, 0, nodes.pool, nodes.node_labels)
        waiting = Waiting(f"a node for {where}", one.resources, nodes=nodes)
        waiting.for_nodes(
            lambda seconds, line: _log.warning("waiting for %.0f s: %s", seconds, line)
        )
    return find_resources()


def ray_node(resources: dict[str, float], labels: dict[str, str]) -> Node:
    """A node from its resources and labels as Ray lists them."""
    kinds = [name for name in resources if name.startswith("accelerator_type:")]
    accelerator = kinds[0].partition(":")[2] if kinds else ""
    pools = frozenset(
        name for name in resources if name not in _RAYS_OWN and not name.startswith(_RAYS_PREFIX)
    )
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    return Node(cpus, gpus, accelerator, pools, labels)


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
