"""Random draws by the hash of a name, so that a new item does not change the other draws.

With a random generator one more draw changes all later ones. Here each draw is the hash of its
name. A choice among items uses rendezvous hashing (Thaler & Ravishankar, 1998): a new item only
changes the choices that it wins.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping


def unit_draw(*name: object) -> float:
    """A number strictly between 0 and 1, uniformly distributed over names."""
    hashed = hashlib.blake2b(repr(name).encode(), digest_size=8).digest()
    return (int.from_bytes(hashed) + 0.5) / 2**64


def shuffled(items: Iterable[str], *name: object) -> list[str]:
    """The items in random order; a new item does not change the order of the others."""
    return sorted(items, key=lambda item: (unit_draw(*name, item), item))


def weighted_choice(weights: Mapping[str, float], *name: object) -> str:
    """A random item; probabilities are proportional to the weights, which must be positive."""
    return max(weights, key=lambda item: (math.log(unit_draw(*name, item)) / weights[item], item))


def blocks(names: Iterable[str], count: int) -> list[list[str]]:
    """Distribute names by their hash over at most `count` blocks, without empty blocks.

    A new name changes only its own block, and one more block splits only one block (linear
    hashing, Litwin, 1980).
    """
    whole = 1 << (count.bit_length() - 1)
    dealt: list[list[str]] = [[] for _ in range(count)]
    for name in names:
        hashed = int(unit_draw("block", name) * 2**53)
        block = hashed % whole
        dealt[hashed % (2 * whole) if block < count - whole else block].append(name)
    return [block for block in dealt if block]
