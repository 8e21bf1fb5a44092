"""Waiting for Ray, which says nothing of what it cannot place and waits for ever for what hangs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import ray

from workers.failure import DescribedFailure

SECONDS_BETWEEN_REPORTS = 30.0
# Time for a node that went to come back.
_NEVER_PLACED_MINUTES = 10.0
_MINUTES_WITHOUT_PROGRESS = 120.0

_log = logging.getLogger(__name__)


class Waiting:
    """Waits for results; warns now and then of what is awaited, and gives up in the end.

    `what`: that waits, for messages. `needs`: what each of it asks of a node, by Ray's names.
    `minutes`: without any result, after which it gives up; sooner where no node has what is needed.
    """

    def __init__(
        self,
        what: str,
        needs: Mapping[str, float],
        minutes: float = _MINUTES_WITHOUT_PROGRESS,
        seconds_between: float = SECONDS_BETWEEN_REPORTS,
    ) -> None:
        self._what, self._needs = what, {name: n for name, n in needs.items() if n}
        self._minutes, self._seconds_between = minutes, seconds_between

    def first(
        self, awaited: Sequence[ray.ObjectRef], state: Callable[[], str] = str
    ) -> ray.ObjectRef:
        """The first of these that is there, result or error. `state`: adds to the messages.

        Raises:
            DescribedFailure: when none comes.
        """
        began = time.monotonic()
        while True:
            ready, _ = ray.wait(list(awaited), timeout=self._seconds_between)
            if ready:
                return ready[0]
            minutes = (time.monotonic() - began) / 60
            placeable, places = describe_places(self._needs)
            limit = self._minutes if placeable else min(self._minutes, _NEVER_PLACED_MINUTES)
            awaiting = "; ".join(part for part in (self._what, state(), places) if part)
            if minutes >= limit:
                raise DescribedFailure(
                    f"gave up after {minutes:.0f} minutes without a result: {awaiting}"
                )
            _log.warning("waiting for %.0f s: %s", 60 * minutes, awaiting)


def describe_places(needs: Mapping[str, float]) -> tuple[bool, str]:
    """Whether any node could ever hold this, by Ray's names, and what is needed and free."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = describe_resources(needs)
    if not any(all(node.get(name, 0) >= n for name, n in needs.items()) for node in nodes):
        there = " | ".join(describe_resources(node, list(needs)) for node in nodes)
        return False, f"each needs {needed} of one node, which no node has ({there})"
    free = describe_resources(ray.available_resources(), list(needs))
    return True, f"each needs {needed}; free are {free}"


def describe_resources(resources: Mapping[str, float], names: Sequence[str] = ()) -> str:
    """Such as `4 CPU, 1 GPU`; `names`: these only, also where there are none of them."""
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in names or resources)
