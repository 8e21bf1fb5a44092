"""Waiting for Ray with reports and a time limit.

Ray itself waits forever, without a message, for tasks that it cannot place or that hang.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from workers.failure import DescribedFailure
from workers.placement import NodeSettings, fits_labels, holds

_SECONDS_BETWEEN_REPORTS = 60.0
_SECONDS_BETWEEN_LOOKS = 0.5
_MINUTES_WITHOUT_RESULT = 120.0

_ANY_NODES = NodeSettings()

_log = logging.getLogger(__name__)


class Waiting:
    """Waits for results, logs a warning at intervals, and gives up after a time limit.

    `subject`: for messages, such as "engines". `needs`: the resources of each, by Ray's names.
    `minutes`: the limit without a result. `nodes`: the nodes that can have them, and the limit
    while these have no room: a lost node may come back, and an autoscaler may add some. `at_once`:
    how many must have their place at the same time.
    """

    def __init__(
        self,
        subject: str,
        needs: Mapping[str, float],
        minutes: float = _MINUTES_WITHOUT_RESULT,
        nodes: NodeSettings | None = None,
        at_once: int = 1,
    ) -> None:
        self._subject, self._minutes, self._at_once = subject, minutes, at_once
        self._nodes = nodes or _ANY_NODES
        self._needs = {name: amount for name, amount in needs.items() if amount}

    def first(
        self, awaited: Sequence[ray.ObjectRef], state: Callable[[str], str] = str
    ) -> ray.ObjectRef:
        """The first of these references that is ready, with a result or an error.

        `state`: describes the state, given a text about needed and free resources.

        Raises:
            DescribedFailure: if the time limit has passed.
        """
        began = time.monotonic()
        seconds, limit = 0.0, 60 * self._minutes
        while True:
            pause = min(_SECONDS_BETWEEN_REPORTS, max(limit - seconds, 0))
            ready, _ = ray.wait(list(awaited), timeout=pause)
            if ready:
                return ready[0]
            seconds = time.monotonic() - began
            _log.warning("waiting for %.0f s: %s", seconds, self.describe(seconds, state))

    def describe(self, seconds: float, state: Callable[[str], str] = str) -> str:
        """Describe the wait after `seconds` without a result; `state` as for `first`.

        Raises:
            DescribedFailure: if the time limit has passed.
        """
        nodes = self._fitting_nodes()
        placeable = self._have_room(nodes)
        limit = 60 * (self._minutes if placeable else min(self._minutes, self._nodes.wait_minutes))
        described = f"{self._subject}: {state(self._describe_needs(nodes, placeable))}"
        if seconds >= limit:
            raise DescribedFailure(f"gave up after {seconds / 60:.0f} minutes: {described}")
        if not placeable:
            described += f"; gives up in {(limit - seconds) / 60:.0f} minutes"
        return described

    def for_nodes(self, on_waiting: Callable[[float, str], None]) -> None:
        """Wait until the cluster has nodes with room for `at_once` of these, free or not.

        Asks for that room meanwhile, so that an autoscaler adds nodes. `on_waiting`: called at
        intervals with the seconds so far and a description.

        Raises:
            DescribedFailure: if the time limit has passed.
        """
        if self._have_room(self._fitting_nodes()):
            return
        labels = dict(self._nodes.node_labels)
        group = placement_group(
            [self._needs] * self._at_once,
            bundle_label_selector=[labels] * self._at_once if labels else None,
        )
        began, reports = time.monotonic(), 0
        try:
            while not self._have_room(self._fitting_nodes()):
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                described = self.describe(seconds := time.monotonic() - began)
                if seconds > (reports + 1) * _SECONDS_BETWEEN_REPORTS:
                    reports += 1
                    on_waiting(seconds, described)
        finally:
            remove_placement_group(group)

    def _fitting_nodes(self) -> list[dict[str, float]]:
        """The resources of the nodes that have the labels."""
        labels = self._nodes.node_labels
        alive: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
        return [node["Resources"] for node in alive if fits_labels(node.get("Labels", {}), labels)]

    def _have_room(self, nodes: Iterable[Mapping[str, float]]) -> bool:
        return sum(holds(node, self._needs) for node in nodes) >= self._at_once

    def _describe_needs(self, nodes: Sequence[Mapping[str, float]], placeable: bool) -> str:
        needed = _listed(self._needs, self._needs)
        if placeable:
            free = _listed(self._needs, ray.available_resources())
            return f"each needs {needed}; free are {free}"
        labels = ", ".join(f"{key}: {value}" for key, value in self._nodes.node_labels.items())
        those = f"nodes with {labels}" if labels else "nodes"
        there = "; ".join(sorted(_listed(self._needs, node) for node in nodes)) or "none"
        each = f"each needs {needed} of one node"
        if self._at_once > 1:
            each = f"{self._at_once} at once, {each}"
        return f"{each}, but the {those} have {there}"


def _listed(names: Iterable[str], resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in names)
