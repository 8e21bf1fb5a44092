"""What a run needs against what is here, before anything starts."""

from __future__ import annotations

import math
import os
import re
import socket
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from joblib import cpu_count

from orchestrator.cluster.local_ray import ray_folder
from orchestrator.errors import InputError

if TYPE_CHECKING:
    from orchestrator.config.models import RunConfig
    from workers.knowledge.pool import Placement

# Below this, workers only wait for each other and fill the memory.
_LEAST_CPUS_PER_WORKER = 0.25

# n / (n / k) may come out just below k.
_ROUNDING = 1e-9

# A socket's path has 107 bytes, and this is the longest one of Ray's below its folder.
_LONGEST_RAY_FOLDER = 107 - len(
    "/ray/session_2026-11-27_20-23-59_272619_4194304/sockets/plasma_store"
)

# Of a node's resources, those that are no pool.
_RAYS_OWN = ("CPU", "GPU", "TPU", "memory", "object_store_memory")
_RAYS_PREFIXES = ("node:", "accelerator_type:")


@dataclass(frozen=True)
class Node:
    """The CPUs and GPUs of one machine; `accelerator`: what those GPUs are.

    `pools`: the custom Ray resources that it advertises.
    """

    cpus: int
    gpus: int
    accelerator: str = ""
    pools: frozenset[str] = frozenset()

    def holds(self, cpus: float, gpus: float) -> int:
        """How many actors of this need fit here at once."""
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

    def holds(self, cpus: float, gpus: float) -> int:
        """How many actors of this need, none of which spans nodes, fit at once."""
        return sum(node.holds(cpus, gpus) for node in self.nodes)

    def of_pool(self, pool: str | None, field: str) -> Resources:
        """The nodes that advertise the pool, all of them where no pool is wanted.

        Raises:
            InputError: naming the field, when no node advertises it.
        """
        if not self.nodes:
            raise InputError(f"{field}: the cluster has no node that is up")
        nodes = tuple(node for node in self.nodes if pool is None or pool in node.pools)
        if not nodes:
            there = sorted({name for node in self.nodes for name in node.pools})
            raise InputError(
                f"{field}: no node advertises the custom resource {pool!r}; "
                f"there are: {', '.join(there) or 'none'}"
            )
        return Resources(nodes)

    def __str__(self) -> str:
        on = f" on {len(self.nodes)} nodes" if len(self.nodes) > 1 else ""
        return f"there are {self.cpus} CPUs and {self.gpus} GPUs{on}"


@dataclass(frozen=True)
class WorkerShare:
    """What each tuning worker gets, in which pool if in one."""

    cpus: float
    gpus: float
    pool: str | None = None

    @property
    def resources(self) -> dict[str, float]:
        """By Ray's names; of the pool next to nothing, for it says where, not how many."""
        pool = {self.pool: 0.001} if self.pool else {}
        return {"CPU": self.cpus, "GPU": self.gpus, **pool}


def find_resources() -> Resources:
    """Ask the cluster where there is one, else look at this machine without starting anything.

    Raises:
        InputError: when nothing answers at RAY_ADDRESS, or Ray cannot start on this machine.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        check_ray_folder()
        return Resources((local_node(),))
    import ray

    from orchestrator.cluster.connect import connect

    try:
        check_reachable(address)
    except OSError:
        raise InputError(f"RAY_ADDRESS: no Ray cluster answers at {address!r}") from None
    try:
        connect()
    except ConnectionError:
        raise InputError(
            f"RAY_ADDRESS: what answers at {address!r} is not a Ray cluster, or one that asks for "
            "a token (then set RAY_AUTH_MODE=token)"
        ) from None
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Resources(tuple(ray_node(resources) for resources in nodes))


def check_ray_folder() -> None:
    """Refuse a folder for temporary files in which Ray cannot start.

    Raises:
        InputError: naming the environment variable that chooses it.
    """
    name, folder = ray_folder()
    length = len(os.fsencode(folder))
    if length > _LONGEST_RAY_FOLDER:
        raise InputError(
            f"{name}: must be at most {_LONGEST_RAY_FOLDER} bytes long, for Ray has sockets below "
            f"it (got {length}: {folder}); {name}=/tmp would do"
        )
    check_folder(str(folder), name)


def ray_node(resources: dict[str, float]) -> Node:
    """A node by the amounts of all its resources, by Ray's names."""
    kinds = [name for name in resources if name.startswith("accelerator_type:")]
    accelerator = kinds[0].partition(":")[2] if kinds else ""
    own = frozenset(
        name for name in resources if name not in _RAYS_OWN and not name.startswith(_RAYS_PREFIXES)
    )
    return Node(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)), accelerator, own)


def check_reachable(address: str) -> None:
    """Raise OSError when nobody listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def visible_gpus() -> int:
    """GPUs of this machine that this process may see, whether its software can use them or not."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(list(Path("/dev").glob("nvidia[0-9]*")))
    return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])


def local_node() -> Node:
    """What this machine lets this process use; no GPU where torch is built for CPUs."""
    try:
        torch_uses_gpus = not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        torch_uses_gpus = False
    gpus = visible_gpus() if torch_uses_gpus else 0
    told = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")) if gpus else []
    models = re.findall(r"^Model:\s*(.+)$", told[0].read_text(), re.M) if told else []
    return Node(cpu_count(), gpus, *models)


def place(
    count: int,
    gpus: float,
    resources: Resources,
    field: str,
    least: float = 1,
    most: float = math.inf,
) -> float:
    """The CPUs of each of `count` actors that run at once, none of which spans nodes: as many as
    there are room for, from `least` to `most`; whole ones where that is one or more, unless both
    are the same.

    Raises:
        InputError: naming the field, when even with the least there is no room for all.
    """
    room = resources.holds(least, gpus)
    if room < count:
        largest = max(resources.nodes, key=lambda node: (node.gpus, node.cpus))
        has = f"the largest node has {largest.cpus} CPUs and {largest.gpus} GPUs"
        fits = f"{room} would fit" if room else has
        raise InputError(
            f"{field}: {count} with {least:g} CPUs and {gpus:g} GPUs each can never be scheduled: "
            f"{resources}; {fits}"
        )
    if least == most:
        return least
    # With which a node is filled by some number of them, the largest first.
    shares = {min(most, node.cpus / of) for node in resources.nodes for of in range(1, count + 1)}
    for share in sorted({most, *shares}, reverse=True):
        cpus = int(share) if 1 <= share < math.inf else share
        if resources.holds(cpus, gpus) >= count:
            return cpus
    raise AssertionError("there is room for all with the least")


def place_engines(config: RunConfig, resources: Resources) -> Placement:
    """How many engines run and on what.

    Raises:
        InputError: naming the field that asks for more than there is.
    """
    # Inside, for it brings Ray, and `doctor` looks at a machine without waiting for that.
    from workers.knowledge.pool import Placement

    llm = config.knowledge.llm
    resources = resources.of_pool(llm.pool, "knowledge.llm.pool")
    gpus = llm.tensor_parallel if resources.gpus else 0
    if llm.tensor_parallel > max(1, *(node.gpus for node in resources.nodes)):
        raise InputError(
            f"knowledge.llm.tensor_parallel: {llm.tensor_parallel} GPUs of one machine an engine, "
            f"but {resources}"
        )
    given = llm.cpus_per_engine
    least = 1 if given == "auto" else given
    room = resources.holds(least, gpus)
    engines = max(1, room if gpus else 1) if llm.engines == "auto" else llm.engines
    most = least if gpus or given != "auto" else math.inf
    cpus = int(place(engines, gpus, resources, "knowledge.llm.engines", least, most))
    return Placement(engines, cpus, gpus, llm.pool)


def place_workers(config: RunConfig, resources: Resources) -> WorkerShare:
    """What each tuning worker gets.

    Raises:
        InputError: naming the field that asks for more than there is.
    """
    tuning = config.tuning
    resources = resources.of_pool(tuning.pool, "tuning.pool")
    enough_gpus = resources.gpus >= tuning.workers
    gpus = float(enough_gpus) if tuning.gpus_per_worker == "auto" else tuning.gpus_per_worker
    least, most = _LEAST_CPUS_PER_WORKER, 1.0
    if tuning.cpus_per_worker != "auto":
        least = most = tuning.cpus_per_worker
    cpus = place(tuning.workers, gpus, resources, "tuning.workers", least, most)
    return WorkerShare(cpus, gpus, tuning.pool)


def check_room(config: RunConfig, command: str, resources: Resources) -> None:
    """Refuse what the command would refuse on these nodes for lack of room. Raises InputError."""
    if config.knowledge.questions.asks_something:
        place_engines(config, resources)
    if command != "knowledge":
        place_workers(config, resources)


def check_absolute(name: str, field: str) -> None:
    """Refuse a relative path to what lies on a cluster. Raises InputError."""
    if not Path(name).expanduser().is_absolute():
        raise InputError(
            f"{field}: {name!r} must be absolute on a cluster, where every node sees it: the "
            "working directory of a Ray job is a temporary copy"
        )


def check_folder(name: str, field: str) -> Path:
    """A folder for results as an absolute path, which can be made and written to.

    Raises:
        InputError: when it cannot, or when it is relative although the run is in a cluster.
    """
    try:
        if os.environ.get("RAY_ADDRESS"):
            check_absolute(name, field)
        folder = Path(name).expanduser().resolve()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            return folder
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{field}: {name[:80]} cannot be written to ({reason})") from None
