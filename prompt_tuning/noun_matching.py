"""Which categories a sentence names: by name, synonym or kind, singular or plural, whole words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from prompt_tuning.categories import Category

_IRREGULAR = {
    "child": "children",
    "deer": "deer",
    "foot": "feet",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "potato": "potatoes",
    "scissors": "scissors",
    "sheep": "sheep",
    "shelf": "shelves",
    "skis": "skis",
    "tomato": "tomatoes",
    "tooth": "teeth",
    "wolf": "wolves",
    "woman": "women",
}

# Compounds in which neither noun is there to be seen: "a hot dog" shows no dog.
_NEITHER_NOUN = """
    hot dog|sea horse|sea lion|teddy bear|computer mouse|guinea pig|flower bed
"""

# Compounds in which only the last noun is: "an apple tree" shows a tree and no apple.
_LAST_NOUN = """
    apple juice|apple orchard|apple pie|apple tree|bear skin|bird cage|bird house|bird nest
    boat house|bus driver|bus station|bus stop|cake stand|car park|car wash|chicken soup|corn field
    cow shed|deer park|dog house|dog kennel|flower pot|flower shop|lemon juice|lemon tree
    lion dance|pig sty|rabbit hole|sheep dog|tree house|tree trunk|train driver|train station
    train track|turkey sandwich|christmas tree lights|palm of
"""


def plural(noun: str) -> str:
    """The plural of an English noun phrase: its last word's.

    >>> plural("traffic light"), plural("bus"), plural("cherry"), plural("sheep")
    ('traffic lights', 'buses', 'cherries', 'sheep')
    """
    *first, last = noun.split(" ")
    if last.lower() in _IRREGULAR:
        ending = _IRREGULAR[last.lower()]
    elif re.search(r"(s|x|z|ch|sh)$", last):
        ending = f"{last}es"
    elif re.search(r"[^aeiou]y$", last):
        ending = f"{last[:-1]}ies"
    else:
        ending = f"{last}s"
    return " ".join([*first, ending])


class NounMatcher:
    """Finds the categories that a text names; the longest name at a place wins.

    So "hot dog" is no dog, and a "tree frog" is a frog and no tree when it is listed as a kind.
    """

    def __init__(
        self, categories: Sequence[Category], kinds: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """`kinds`: unreviewed words by category name; those of two categories stand for none."""
        owner: dict[str, int | None] = {}
        for i, category in enumerate(categories):
            for noun in (*category.names, *category.kinds):
                for form in (noun, plural(noun)):
                    owner[_plain(form)] = i
        reviewed = set(owner)
        for i, category in enumerate(categories):
            for noun in (kinds or {}).get(category.name, ()):
                for form in {_plain(noun), _plain(plural(noun))} - reviewed:
                    owner[form] = i if owner.get(form, i) == i else None
        for compound in _listed(_NEITHER_NOUN):
            for form in (compound, plural(compound)):
                owner.setdefault(form, None)
        for compound in _listed(_LAST_NOUN):
            for form in (compound, plural(compound)):
                owner.setdefault(form, owner.get(form.split(" ")[-1]))
        self._owner = owner
        longest_first = sorted(owner, key=lambda noun: (-len(noun), noun))
        alternatives = "|".join(re.escape(noun).replace(r"\ ", r"[\s-]+") for noun in longest_first)
        self._pattern = re.compile(rf"(?<!\w)({alternatives})(?!\w)", re.IGNORECASE)

    def find(self, text: str) -> tuple[int, ...]:
        """Indices of the categories that `text` names, ascending."""
        found = {self._owner[_plain(match.group())] for match in self._pattern.finditer(text)}
        return tuple(sorted(i for i in found if i is not None))


def _listed(compounds: str) -> list[str]:
    return [compound.strip() for compound in re.split(r"[|\n]", compounds.strip())]


def _plain(text: str) -> str:
    return re.sub(r"[\s-]+", " ", text.lower())
