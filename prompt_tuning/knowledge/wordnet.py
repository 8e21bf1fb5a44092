"""Which English nouns there are, and which of them are kinds of others, from WordNet 3.0.

`data/wordnet_nouns.txt.gz` holds the nouns of visible things, each with its most frequent visible
sense, and all that is above them. `benchmarks/wordnet_nouns.py` writes it.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib import resources

from prompt_tuning.label_names import name_key


class WordNet:
    """Senses are numbers. A line of the file: the nouns of a sense, and the senses above it."""

    def __init__(self) -> None:
        file = resources.files("prompt_tuning") / "data" / "wordnet_nouns.txt.gz"
        self._above: list[tuple[int, ...]] = []
        self._sense: dict[str, int] = {}
        for sense, line in enumerate(gzip.decompress(file.read_bytes()).decode().splitlines()):
            nouns, _, above = line.partition("|")
            self._above.append(tuple(int(other) for other in above.split(",") if other))
            self._sense |= dict.fromkeys(nouns.split(",") if nouns else (), sense)

    def __contains__(self, noun: str) -> bool:
        return noun.lower() in self._sense

    @property
    def nouns(self) -> list[str]:
        return list(self._sense)

    def sense(self, name: str) -> int | None:
        """The sense of a name in either number; None for an unknown one."""
        return self._sense.get(name.lower(), self._sense.get(name_key(name)))

    def above(self, sense: int) -> tuple[int, ...]:
        """The senses right above one."""
        return self._above[sense]


@cache
def wordnet() -> WordNet:
    """WordNet, read once."""
    return WordNet()
