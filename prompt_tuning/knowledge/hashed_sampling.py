"""Random draws that are named by what they are for, so that adding an item elsewhere shifts none.

A generator hands out numbers in order: one more draw and all later ones change. Here each draw is
the hash of its name, and a choice among items is by rendezvous hashing (Thaler & Ravishankar,
1998): an item that joins only changes the choices that it wins.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping


def unit_draw(*name: object) -> float:
    """A number strictly between 0 and 1, uniform over names."""
    hashed = hashlib.blake2b(repr(name).encode(), digest_size=8).digest()
    return (int.from_bytes(hashed) + 0.5) / 2**64


def shuffled(items: Iterable[str], *name: object) -> list[str]:
    """The items in an order of their own: one that joins leaves the others' order."""
    return sorted(items, key=lambda item: (unit_draw(*name, item), item))


def weighted_choice(weights: Mapping[str, float], *name: object) -> str:
    """An item with probability in proportion to its positive weight."""
    return max(weights, key=lambda item: (math.log(unit_draw(*name, item)) / weights[item], item))


def blocks(names: Iterable[str], count: int) -> list[list[str]]:
    """Names dealt by their hash into about `count` blocks; empty ones are left out.

    One name more changes only its own block; one block more splits only one of them
    (linear hashing, Litwin, 1980).
    """
    whole = 1 << (count.bit_length() - 1)
    dealt: list[list[str]] = [[] for _ in range(count)]
    for name in names:
        hashed = int(unit_draw("block", name) * 2**53)
        block = hashed % whole
        dealt[hashed % (2 * whole) if block < count - whole else block].append(name)
    return [block for block in dealt if block]
