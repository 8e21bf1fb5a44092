"""Labels as keywords: how they are spelled, compared, and put into a hierarchy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from prompt_tuning.label_names import name_key

SEPARATOR = "|"
"""Between the levels of a path in `lr:hierarchicalSubject`."""


def keyword(name: str) -> str:
    """A label as a keyword, which may be empty: one line that XML can hold, without `|`.

    Photo managers read `|` as the step to another level.

    >>> keyword("salt|pepper"), keyword("TV/monitor"), keyword("a\\x00b\\n")
    ('salt-pepper', 'TV/monitor', 'a b')
    """
    text = "".join(letter if letter.isprintable() else " " for letter in name)
    return " ".join(text.replace(SEPARATOR, "-").split())


def path(levels: Sequence[str]) -> str:
    """A path in the hierarchy; equal neighbours are one level, and `/` becomes `-` as `|` does.

    Some programs read `/` as the step to another level.

    >>> path(["animals", "pets", "dog"]), path(["tree", "tree", "ash/elm"])
    ('animals|pets|dog', 'tree|ash-elm')
    """
    plain: list[str] = []
    for level in levels:
        name = keyword(level.replace("/", "-"))
        if name and plain[-1:] != [name]:
            plain.append(name)
    return SEPARATOR.join(plain)


def leaf(path: str) -> str:
    """The last level of a path."""
    return path.rpartition(SEPARATOR)[2].strip()


@lru_cache(maxsize=65536)
def keyword_key(text: str) -> str:
    """The form in which keywords and labels are compared: as labels are, `|` and `/` as spaces.

    >>> keyword_key("Dogs") == keyword_key("dog"), keyword_key("a/b") == keyword_key("a-b")
    (True, True)
    """
    return name_key(re.sub(r"[|/]", " ", text))


def paths_of(tree: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """The path of each label of an artifact: its coarse group, fine group, and name."""
    return {
        name: path((coarse, fine, name))
        for coarse, fines in tree.items()
        for fine, names in fines.items()
        for name in names
    }
