"""What may go wrong with a list of labels, found before a language model is asked.

Nothing here needs images or a model; what the text tower shows is in label_features.py.
"""

from __future__ import annotations

import gzip
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import lemminflect
import yaml

from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.knowledge.label_check import dropped_labels
from prompt_tuning.knowledge.wordnet import wordnet
from prompt_tuning.label_names import name_key, plain_name

Level = Literal["error", "warning"]

_CODE = re.compile(r"[a-z]{0,5}[-_ ./#]?\d[\w-]*|\w*_\w*\d\w*", re.IGNORECASE)
# Pairs of British and American spellings, as parts of words.
_SPELLINGS = (
    *(("aeroplane", "airplane"), ("aluminium", "aluminum"), ("colour", "color"), ("grey", "gray")),
    *(("doughnut", "donut"), ("jewellery", "jewelry"), ("moustache", "mustache")),
    *(("pyjama", "pajama"), ("plough", "plow"), ("tyre", "tire"), ("yoghurt", "yogurt")),
    *(("armour", "armor"), ("harbour", "harbor"), ("fibre", "fiber"), ("theatre", "theater")),
    *(("centre", "center"), ("catalogue", "catalog"), ("mould", "mold")),
)
_SMALL_WORDS = frozenset(
    """
    about above after against along among and any around before behind below beneath beside between
    beyond for from her his how into its near off onto other our out over some than that the their
    them this those through under until upon what when where which while who whose with without you
    your
    """.split()
)
# With as many labels in no dictionary, a list is taken to be in another language.
_SHARE_FOREIGN = 0.5
_FEWEST_FOREIGN = 3
_SUGGESTED_FOR = 50
_LETTERS_WRONG = 3


class Finding(NamedTuple):
    """What may go wrong with a label. `level`: an error ends a run. `advice`: what to write."""

    level: Level
    kind: str
    label: str
    message: str
    advice: str


def find_in_names(categories: CategoryList, dropped: bool = True) -> list[Finding]:
    """What the names alone show, in seconds for thousands of labels.

    `dropped`: also labels whose sentences the caption filter drops, which takes longest.
    """
    return [
        *_two_spellings(categories),
        *_unknown_words(categories),
        *(_dropped(categories) if dropped else ()),
        *_kinds_of_others(categories),
    ]


def find_several_senses(categories: CategoryList) -> list[Finding]:
    """Names of several senses without synonyms or kinds that would say which is meant."""
    return [
        Finding(
            "warning",
            "several senses",
            category.name,
            f"may be {listed(senses)}",
            f"add synonyms or kinds that say which, such as {senses[0]!r}",
        )
        for category in categories.categories
        if (senses := senses_of(category.name)) and not other_names(category)
    ]


def _two_spellings(categories: CategoryList) -> Iterator[Finding]:
    """Labels that differ by a space or by British and American spelling only."""
    first: dict[str, str] = {}
    for name in categories.names:
        squashed = name_key(name).replace(" ", "").replace("'", "")
        for british, american in _SPELLINGS:
            squashed = squashed.replace(british, american)
        other = first.setdefault(squashed, name)
        if other != name:
            yield Finding(
                "warning",
                "two spellings",
                name,
                f"looks like another spelling of {other!r}",
                f"list it under the synonyms of {other!r}",
            )


def _unknown_words(categories: CategoryList) -> Iterator[Finding]:
    """Codes, other scripts, and words that no English dictionary has."""
    foreign = set(foreign_labels(categories))
    suggested = 0
    for category in categories.categories:
        name = category.name
        script, word = _other_script(name), _unknown_word(name)
        if _CODE.fullmatch(name):
            yield Finding(
                "warning",
                "code",
                name,
                "looks like a code, which says nothing to a text tower",
                "write what the image shows, and keep the code in a list of your own",
            )
        elif script or name in foreign:
            said = f"is written in {script} letters" if script else f"{word!r} is not English"
            yield Finding(
                "error" if name in foreign else "warning",
                "other language",
                name,
                f"{said}; questions, filters and the text tower read English",
                "write the English name, or give it as a synonym",
            )
        elif word and not _has_english_name(category):
            suggested += 1
            near = _similar_noun(word) if suggested <= _SUGGESTED_FOR else None
            advice = "check the spelling, or give it a synonym in plain English words"
            if near:
                advice = f"check the spelling; did you mean {near!r}?"
            message = f"{word!r} is in no English dictionary"
            yield Finding("warning", "unknown word", name, message, advice)


def foreign_labels(categories: CategoryList) -> list[str]:
    """The labels without any English name, if there are so many that a run would be in vain."""
    foreign = [
        category.name for category in categories.categories if not _has_english_name(category)
    ]
    fewest = max(_FEWEST_FOREIGN, _SHARE_FOREIGN * len(categories))
    return foreign if len(foreign) >= fewest else []


def _has_english_name(category: Category) -> bool:
    names = (*category.names, *category.kinds)
    return any(not _other_script(name) and not _unknown_word(name) for name in names)


def _dropped(categories: CategoryList) -> Iterator[Finding]:
    for label in dropped_labels(categories):
        never = "every sentence" if label.never else "most sentences"
        yield Finding(
            "error" if label.never else "warning",
            "no sentences",
            label.name,
            f"{never} about it would be dropped ({label.reason})",
            "rename it, or give it a synonym in plain English words",
        )


def _kinds_of_others(categories: CategoryList) -> Iterator[Finding]:
    """Labels that are kinds of another label, as poodle and dog: the nearest one above."""
    net = wordnet()
    senses = {name: net.sense(name) for name in categories.names}
    owner = {sense: name for name, sense in senses.items()}
    for name, sense in senses.items():
        level = {sense} if sense is not None else set()
        above: str | None = None
        while level and above is None:
            level = {up for lower in level for up in net.above(lower)}
            above = next((owner[up] for up in sorted(level) if up in owner), None)
        if above is not None:
            yield Finding(
                "warning",
                "kind of another label",
                name,
                f"is a kind of {above}: an image of it shows both",
                f"keep both if you want both tags, else list it under the kinds of {above!r}",
            )


@cache
def _homographs() -> dict[str, list[str]]:
    text = (resources.files("prompt_tuning") / "data" / "homographs.yaml").read_text("utf-8")
    senses: dict[str, list[str]] = yaml.safe_load(text)
    return senses


def senses_of(name: str) -> list[str]:
    """What a name may mean, if that is several things; else empty."""
    return _homographs().get(name_key(name)) or _homographs().get(plain_name(name)) or []


def other_names(category: Category) -> list[str]:
    """Its synonyms and kinds, which say which sense is meant."""
    return [*category.synonyms, *category.kinds]


def listed(senses: list[str]) -> str:
    """As in "a, b or c"."""
    return f"{', '.join(senses[:-1])} or {senses[-1]}"


def _other_script(name: str) -> str | None:
    """The script of the first letter that is not Latin, such as "cjk" or "cyrillic"."""
    for letter in filter(str.isalpha, name):
        script = unicodedata.name(letter, "unknown").split()[0]
        if script not in ("LATIN", "FEMININE", "MASCULINE"):
            return script.capitalize() if script != "CJK" else "Chinese"
    return None


def _unknown_word(name: str) -> str | None:
    """The first word that no English dictionary has, in any inflection."""
    if name_key(name) in wordnet():
        return None
    words = re.split(r"[\s-]+", name)
    if len(words) > 1 and name[0].isupper():
        return None  # mostly a proper name
    return next((word for word in words if not _is_known(word)), None)


def _is_known(word: str) -> bool:
    plain = unicodedata.normalize("NFD", word).encode("ascii", "ignore").decode().lower()
    plain = plain.strip("'\".()&").removesuffix("'s")
    if len(plain) <= 2 or not plain.isalpha() or plain in _SMALL_WORDS:
        return True
    return (
        plain in wordnet() or bool(lemminflect.getAllLemmas(plain)) or plain in _words_of_captions()
    )


@cache
def _words_of_captions() -> frozenset[str]:
    """The whole words in CLIP's vocabulary, which also has brands and new words ("selfie").

    Read from open_clip's file, since its import takes seconds.
    """
    package = find_spec("open_clip")
    assert package is not None, "a package that is always installed"
    assert package.origin is not None
    file = Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    # As its tokenizer reads it: a heading, then 48,894 merges; what follows is not used.
    merges = gzip.decompress(file.read_bytes()).decode().splitlines()[1:48_895]
    ends = ("".join(merge.split()) for merge in merges)
    return frozenset(word.removesuffix("</w>") for word in ends if word.endswith("</w>"))


def _similar_noun(word: str) -> str | None:
    """The noun that this word may be a misspelling of, with swapped or a few wrong letters."""
    letters = Counter(word.lower())

    def difference(noun: str) -> int:
        other = Counter(noun)
        return ((letters - other) + (other - letters)).total()

    near = get_close_matches(word.lower(), wordnet().nouns, 20, cutoff=0.7)
    best = min(near, key=difference, default=None)
    return best if best is not None and difference(best) <= _LETTERS_WRONG else None
