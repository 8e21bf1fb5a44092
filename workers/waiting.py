"""Waiting for Ray with reports and a time limit.

Ray itself waits forever, without a message, for tasks that it cannot place or that hang.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import ray

from workers.failure import DescribedFailure

_SECONDS_BETWEEN_REPORTS = 90.0
# The limit while no node has the needed resources: a lost node may come back.
_SECONDS_UNPLACEABLE = 600.0
_MINUTES_WITHOUT_RESULT = 120.0

_log = logging.getLogger(__name__)


class Waiting:
    """Waits for results, logs a warning at intervals, and gives up after a time limit.

    `subject`: for messages, such as "engines". `needs`: the resources of each, by Ray's names.
    `minutes`: the limit without a result; it is shorter while no node has the resources.
    """

    def __init__(
        self, subject: str, needs: Mapping[str, float], minutes: float = _MINUTES_WITHOUT_RESULT
    ) -> None:
        self._subject, self._minutes = subject, minutes
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
        placeable, needs = _describe_needs(self._needs)
        described = f"{self._subject}: {state(needs)}"
        if seconds >= 60 * self._minutes or (not placeable and seconds >= _SECONDS_UNPLACEABLE):
            raise DescribedFailure(f"gave up after {seconds / 60:.0f} minutes: {described}")
        return described


def _describe_needs(needs: Mapping[str, float]) -> tuple[bool, str]:
    """Whether any node has these resources, and a text about needed and free resources."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = _listed(needs, needs)
    if not any(all(node.get(name, 0) >= n for name, n in needs.items()) for node in nodes):
        there = "; ".join(sorted(_listed(needs, node) for node in nodes))
        return False, f"each needs {needed} of one node, but the nodes have {there}"
    return True, f"each needs {needed}; free are {_listed(needs, ray.available_resources())}"


def _listed(names: Iterable[str], resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in names)
