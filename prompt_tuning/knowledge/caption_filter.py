"""Which answers of the language model become captions, and with which labels.

A caption's labels are the categories that its sentence names, whether or not they were asked for.
Each dropped answer has exactly one reason.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from prompt_tuning.captions import Caption, CaptionSettings
from prompt_tuning.categories import CategoryList
from prompt_tuning.knowledge.dialogue import Answer, Question
from prompt_tuning.knowledge.noun_matching import NounMatcher

_REFUSAL = re.compile(
    r"^sorry\b|\bas an ai\b|\blanguage model\b|\bi('m| am) (sorry|unable)\b|\bapologi[sz]e\b"
    r"|\bi can ?('t|not)\b|^describe\b",
    re.I,
)
_NEGATION = re.compile(
    r"\bthere (is|are) no\b|\bwithout (an?|any)\b|\b(is|are|do|does)( not|n't)\b", re.I
)
_DEFINITION = re.compile(r"^(an?|the) ([\w-]+ ){1,4}(is|are) (an?|one|the|known|called)\b", re.I)
_MARKUP = re.compile(r":(?!\d)|\||_|[#*<>{}\[\]]|\d\.\s")
_COMMAS_ALLOWED = 3
_TYPOGRAPHY = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u00a0", "''\"\"-- ")
# Frequent words of languages that models switch to; two of them make a sentence foreign.
_FOREIGN = frozenset(
    """
    der das den dem und ist ein eine einer mit auf el los las una unos con en del muy y le les un
    une des dans est avec sur et la il lo gli della uno che uma com na os e
    """.split()
)
_SMALL = frozenset("a an the of in on at with and or is are was its it to from by for".split())
# Such phrases may occur twice in a sentence.
_PLACE = re.compile(r"\b(in front of|on top of|next to) an?\b")
_COPIED_RUN = 5  # words


class CaptionFilter:
    """Turns answers into captions without duplicates.

    `kinds`: unreviewed kinds by category name, which count as names of the category.
    """

    def __init__(
        self,
        categories: CategoryList,
        settings: CaptionSettings,
        kinds: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._names = categories.names
        self._matcher = NounMatcher(categories.categories, kinds)
        self._settings = settings
        self._seen = set[bytes]()  # hashes of the captions
        self._example = lru_cache(maxsize=1024)(
            lambda text: (_runs(text), set(self._matcher.find(text)), _content_words(text))
        )

    def judge(self, question: Question, answer: Answer) -> Caption | str:
        """The caption from an answer, or the reason to drop the answer."""
        if answer.failure is not None:
            return "not answered"
        text = " ".join(answer.text.translate(_TYPOGRAPHY).split()).strip("\"' ")
        # `bare` lacks the category names, which may be "C#" or "no parking sign".
        labels, bare = self._matcher.read(text)
        asked = {self._names.index(name) for name in question.categories}
        words = text.split()
        if not self._settings.min_words <= len(words) <= self._settings.max_words:
            return "too short or too long"
        if not answer.finished or not text.endswith((".", "!")):
            return "truncated"
        if _is_foreign(bare):
            return "not English"
        if _REFUSAL.search(bare):
            return "refusal"
        if _NEGATION.search(bare):
            return "says what is not there"
        if _MARKUP.search(bare) or bare.count(",") > max(_COMMAS_ALLOWED, len(asked)):
            return "list or markup"
        if _DEFINITION.search(bare):
            return "defines instead of describing"
        if _repeats_itself(bare):
            return "repeats itself"
        if not asked & set(labels):
            return "does not name what was asked for"
        for runs, named, content in map(self._example, question.shown):
            also_named = named & (set(labels) - asked)
            if runs & _runs(text) or also_named or content == _content_words(text):
                return "copies an example"
        # With labels, because "a dog on the grass" does not duplicate "a cow on the grass".
        key = f"{_content_words(text)}/{labels}".encode()
        hashed = hashlib.blake2b(key, digest_size=8).digest()
        if hashed in self._seen:
            return "duplicate or nearly"
        self._seen.add(hashed)
        return Caption(text, labels, question.kind)


def _is_foreign(text: str) -> bool:
    """Whether a sentence has letters outside the Latin script or words of other languages."""
    if any(letter.isalpha() and letter > "\u024f" for letter in text):
        return True
    return len(_FOREIGN & set(re.findall(r"\w+", text.lower()))) > 1


def _content_words(text: str) -> str:
    """The sorted content words of a sentence; near duplicates have the same ones."""
    return " ".join(sorted(set(re.findall(r"[a-z]+", text.lower())) - _SMALL))


def _runs(text: str) -> set[tuple[str, ...]]:
    """Word runs with at least three longer words; sharing one means that a sentence was copied."""
    words = re.findall(r"[a-z']+", text.lower())
    runs = (tuple(words[i : i + _COPIED_RUN]) for i in range(len(words) - _COPIED_RUN + 1))
    return {run for run in runs if len({word for word in run if len(word) > 3}) >= 3}


def _repeats_itself(text: str) -> bool:
    words = _PLACE.sub("before", text.lower()).split()
    triples = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return len(set(triples)) < len(triples)
