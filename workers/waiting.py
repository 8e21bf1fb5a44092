"""Waiting for Ray, which says nothing of what it cannot place and waits for ever for what hangs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import ray

from workers.failure import DescribedFailure

_SECONDS_BETWEEN_REPORTS = 90.0
# Where no node has what is needed; time for one that went to come back.
_SECONDS_NOWHERE = 600.0
_MINUTES_WITHOUT_RESULT = 120.0

_log = logging.getLogger(__name__)


class Waiting:
    """Waits for results; warns now and then of what is awaited, and gives up in the end.

    `what`: whose results, for messages. `needs`: what each of these asks of a node, by Ray's names.
    `minutes`: without a result, after which it gives up; sooner where no node has what is needed.
    """

    def __init__(
        self, what: str, needs: Mapping[str, float], minutes: float = _MINUTES_WITHOUT_RESULT
    ) -> None:
        self._what, self._minutes = what, minutes
        self._needs = {name: amount for name, amount in needs.items() if amount}

    def first(
        self, awaited: Sequence[ray.ObjectRef], state: Callable[[str], str] = str
    ) -> ray.ObjectRef:
        """The first of these that is there, result or error.

        `state`: describes what is under way, given what each needs and what is free.

        Raises:
            DescribedFailure: when none comes.
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
        """What is awaited, after so long without a result; `state` as for `first`.

        Raises:
            DescribedFailure: when that is too long.
        """
        placeable, places = _places(self._needs)
        described = f"{self._what}: {state(places)}"
        if seconds >= 60 * self._minutes or (not placeable and seconds >= _SECONDS_NOWHERE):
            raise DescribedFailure(f"gave up after {seconds / 60:.0f} minutes: {described}")
        return described


def _places(needs: Mapping[str, float]) -> tuple[bool, str]:
    """Whether there is a node that could hold this, and what is needed and free."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = _listed(needs, needs)
    if not any(all(node.get(name, 0) >= n for name, n in needs.items()) for node in nodes):
        there = "; ".join(sorted(_listed(needs, node) for node in nodes))
        return False, f"each needs {needed} of one node, but the nodes have {there}"
    return True, f"each needs {needed}; free are {_listed(needs, ray.available_resources())}"


def _listed(names: Iterable[str], resources: Mapping[str, float]) -> str:
    """Such as `4 CPU, 0 GPU`."""
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in names)
