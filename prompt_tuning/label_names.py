"""Names of labels, compared as people mean them: `Dog`, `dogs` and `dog ` are one label."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

import lemminflect

from prompt_tuning.plain_text import visible

_BETWEEN_WORDS = re.compile(r"[\s_\u2010-\u2015-]+")
# The noun before one of these carries the number: "glasses of wine".
_AFTER_HEAD = frozenset("at by for from in of on with without".split())
# What the lexicon lacks, or takes for the plural of something that no image shows.
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
# Alone, these name another thing than their singular does.
_PLURAL_ONLY = frozenset(
    """
    arms blinds boxers briefs customs glasses goods greens jeans pants shorts slacks sweats tights
    trunks woods works
    """.split()
)


def name_key(name: str) -> str:
    """The form in which two names are compared; not for people to read.

    NFC, case-folded, one blank for any run of blanks, hyphens and underscores, plain apostrophes,
    and the noun that carries the number in the singular.

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
    """`name_key` without the singular.

    >>> plain_name("Driver\u2019s  Licences")
    "driver's licences"
    """
    return _BETWEEN_WORDS.sub(" ", folded(visible(name))).strip()


def folded(text: str) -> str:
    """Without upper case, whatever the letters: "STRASSE" is as "Stra\u00dfe"."""
    if text.isascii():
        return text.lower()
    return visible(text.casefold().replace("i\u0307", "i"))


def head_position(words: list[str]) -> int:
    """Where the noun stands that carries a name's number.

    >>> head_position(["glasses", "of", "wine"]), head_position(["traffic", "lights"])
    (0, 1)
    """
    after = (i for i, word in enumerate(words) if i and word in _AFTER_HEAD)
    return next(after, len(words)) - 1


@lru_cache(maxsize=65536)
def singular(noun: str) -> str:
    """The singular of an English noun in lower case; other words come back as they are.

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
    """By the word's end: the lexicon lacks "milkwomen", "emojis" and "smartwatches"."""
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
    """Finds a label by any spelling of its name that `name_key` holds equal."""

    def __init__(self, names: Iterable[str]) -> None:
        self._index = {name_key(name): i for i, name in enumerate(names)}

    def find(self, spelling: str) -> int | None:
        """Position of the label that is meant; None when no label has this name."""
        return self._index.get(name_key(spelling))
