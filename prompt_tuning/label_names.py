"""Comparison of label names: `Dog`, `dogs` and `dog ` are the same label."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

import lemminflect

from prompt_tuning.plain_text import visible

_BETWEEN_WORDS = re.compile(r"[\s_\u2010-\u2015-]+")
# The noun before one of these words is singular or plural: "glasses of wine".
_AFTER_HEAD = frozenset("at by for from in of on with without".split())
# Plurals that the lexicon lacks, or for which it has another, rarer singular.
_SINGULARS = {
    "curries": "curry",
    "grannies": "granny",
    "leaves": "leaf",
    "lenses": "lens",
    "nannies": "nanny",
    "oxen": "ox",
    "people": "person",
    "reis": "reis",
}
# On their own, these mean something other than their singular.
_PLURAL_ONLY = frozenset(
    """
    arms blinds boxers briefs customs glasses goods greens jeans pants shorts slacks sweats tights
    trunks woods works
    """.split()
)


def name_key(name: str) -> str:
    """The form in which names are compared; not for display.

    NFC, case-folded, with plain apostrophes, one space for each run of spaces, hyphens and
    underscores, and the head noun in the singular.

    >>> name_key(" Traffic_Lights"), name_key("t-shirt") == name_key("T shirt")
    ('traffic light', True)
    >>> name_key("glasses of wine"), name_key("bus"), name_key("glasses")
    ('glass of wine', 'bus', 'glasses')
    """
    name = plain_name(name)
    if name in _PLURAL_ONLY:
        return name
    words = name.split(" ")
    head = head_position(words)
    return " ".join([*words[:head], singular(words[head]), *words[head + 1 :]])


def plain_name(name: str) -> str:
    """`name_key` without the singular step.

    >>> plain_name("Driver\u2019s  Licences")
    "driver's licences"
    """
    return _BETWEEN_WORDS.sub(" ", folded(visible(name))).strip()


def folded(text: str) -> str:
    """Case-folded text: "STRASSE" becomes equal to "Stra\u00dfe"."""
    if text.isascii():
        return text.lower()
    return visible(text.casefold().replace("i\u0307", "i"))


def head_position(words: list[str]) -> int:
    """Index of the head noun, which is singular or plural.

    >>> head_position(["glasses", "of", "wine"]), head_position(["traffic", "lights"])
    (0, 1)
    """
    after = (i for i, word in enumerate(words) if i and word in _AFTER_HEAD)
    return next(after, len(words)) - 1


@lru_cache(maxsize=65536)
def singular(noun: str) -> str:
    """The singular of an English noun in lower case; other words are returned unchanged.

    >>> [singular(noun) for noun in ("snowmen", "mangoes", "selfies", "glass", "series", "tennis")]
    ['snowman', 'mango', 'selfie', 'glass', 'series', 'tennis']
    """
    if noun in _SINGULARS:
        return _SINGULARS[noun]
    lemmas = lemminflect.getAllLemmas(noun, "NOUN").get("NOUN", ())
    if not lemmas:
        return _unlisted_singular(noun)
    if noun in lemmas and not noun.endswith("s"):
        return noun
    others = [lemma for lemma in lemmas if lemma != noun] or [noun]
    return noun[:-1] if noun[:-1] in others else min(others, key=len)


def _unlisted_singular(noun: str) -> str:
    """By the word's ending, for words such as "milkwomen", "emojis" and "smartwatches"."""
    if ending := re.search(
        r"(?<=.)(men|children|feet|teeth|mice|geese|(kni|shel|lea|wol)ves)$", noun
    ):
        return noun[: ending.start()] + singular(ending.group())
    if re.search(r"(ch|sh|x|ss|zz|[^aeo]us)es$", noun):
        return noun[:-2]
    if re.search(r"(.{3}[^sui']|.{2}[bdfghjkmpwz]i)s$|eaux$", noun):
        return noun[:-1]
    return noun


class LabelNames:
    """Finds labels by name, compared by `name_key`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._index = {name_key(name): i for i, name in enumerate(names)}

    def find(self, spelling: str) -> int | None:
        """Index of the label with this name, or None."""
        return self._index.get(name_key(spelling))
