"""How fast the service works now, and so when it is worth asking again."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

_WINDOW_S = 30.0
_LONGEST_S = 60


class Pace:
    """What was finished in the last seconds: images, or bytes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._done: deque[tuple[float, int]] = deque()
        self._amount = 0

    def finished(self, amount: int) -> None:
        """Count what has just been finished."""
        self._done.append((self._clock(), amount))
        self._amount += amount
        self._forget()

    def seconds_for(self, amount: int) -> int:
        """Whole seconds in which so much is finished at this pace, 1 to 60."""
        self._forget()
        if not self._amount:  # nothing is known, or only empty things were finished
            return 1
        per_second = self._amount / max(1.0, self._clock() - self._done[0][0])
        return max(1, min(_LONGEST_S, math.ceil(amount / per_second)))

    def _forget(self) -> None:
        while self._done and self._done[0][0] < self._clock() - _WINDOW_S:
            self._amount -= self._done.popleft()[1]
