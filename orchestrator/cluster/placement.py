"""How many CPUs and GPUs each engine and each tuning worker gets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from orchestrator.cluster.resources import Resources
from orchestrator.errors import InputError
from workers.placement import Placement

if TYPE_CHECKING:
    from workers.knowledge.llm_settings import LLMSettings
    from workers.tuning.job import DistributedTuningSettings

# With fewer CPUs, workers only wait for each other and fill the memory.
_LEAST_CPUS_PER_WORKER = 0.25


def place(
    count: int,
    gpus: float,
    resources: Resources,
    field: str,
    least: float = 1,
    most: float = math.inf,
) -> float:
    """Return the CPUs of each of `count` simultaneous actors: as many as fit, `least` to `most`.

    An actor runs on one node. Shares of one CPU or more are rounded down to whole CPUs, unless
    `least == most`. On a cluster that may grow, actors that do not all fit yet get `least` each, so
    that they fit on most nodes that may come.

    Raises InputError, naming the field, when not all actors fit even with `least` CPUs each and the
    cluster cannot grow.
    """
    room = resources.holds(least, gpus)
    if room < count and resources.may_grow:
        return least
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
    # The shares that fill a node with 1, 2, … `count` actors, tried from the largest.
    shares = {min(most, node.cpus / n) for node in resources.nodes for n in range(1, count + 1)}
    for share in sorted({most, *shares}, reverse=True):
        cpus = int(share) if 1 <= share < math.inf else share
        if resources.holds(cpus, gpus) >= count:
            return cpus
    raise AssertionError("all actors fit with `least` CPUs each")


def place_engines(llm: LLMSettings, resources: Resources) -> Placement:
    """Return how many engines, or clients of a server, run with what. Raises InputError."""
    if llm.source == "file":
        return Placement(0, 0, 0)
    resources = resources.chosen_by(llm, "knowledge.llm")
    if llm.source == "server":
        return Placement(1, 1, 0, llm.pool, llm.node_labels)
    gpus = llm.tensor_parallel if resources.gpus else 0
    largest = max(1, *(node.gpus for node in resources.nodes))
    if llm.tensor_parallel > largest and not (gpus and resources.may_grow):
        raise InputError(
            f"knowledge.llm.tensor_parallel: {llm.tensor_parallel} GPUs of one node per engine can "
            f"never be scheduled: {resources}"
        )
    given = llm.cpus_per_engine
    least = 1 if given == "auto" else given
    room = resources.holds(least, gpus)
    engines = max(1, room if gpus else 1) if llm.engines == "auto" else llm.engines
    most = least if gpus or given != "auto" else math.inf
    cpus = int(place(engines, gpus, resources, "knowledge.llm.engines", least, most))
    return Placement(engines, cpus, gpus, llm.pool, llm.node_labels)


def place_workers(tuning: DistributedTuningSettings, resources: Resources) -> Placement:
    """Return how many tuning workers run and what each gets. Raises InputError."""
    resources = resources.chosen_by(tuning, "tuning")
    enough_gpus = resources.gpus >= tuning.workers
    gpus = float(enough_gpus) if tuning.gpus_per_worker == "auto" else tuning.gpus_per_worker
    least, most = _LEAST_CPUS_PER_WORKER, 1.0
    if tuning.cpus_per_worker != "auto":
        least = most = tuning.cpus_per_worker
    cpus = place(tuning.workers, gpus, resources, "tuning.workers", least, most)
    return Placement(tuning.workers, cpus, gpus, tuning.pool, tuning.node_labels)
