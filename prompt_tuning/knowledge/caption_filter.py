"""Which answers of the language model become captions, and with which labels.

A label holds when the sentence names the category; an answer that does not name what was asked
for loses that label. Every sentence that is dropped is counted under one reason.
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
# Small words of the languages that models slip into; two of them make a sentence foreign.
_FOREIGN = frozenset(
    """
    der das den dem und ist ein eine einer mit auf el los las una unos con en del muy y le les un
    une des dans est avec sur et la il lo gli della uno che uma com na os e
    """.split()
)
_SMALL = frozenset("a an the of in on at with and or is are was its it to from by for".split())
# May well be said twice.
_PLACE = re.compile(r"\b(in front of|on top of|next to) an?\b")
_COPIED_RUN = 5


class CaptionFilter:
    """Turns answers into captions, remembering what it has kept.

    `kinds`: unreviewed words by category name, which count as naming the category.
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
        self._seen = set[bytes]()  # hashes of what was kept
        self._example = lru_cache(maxsize=1024)(
            lambda text: (_runs(text), set(self._matcher.find(text)), _content_words(text))
        )

    def judge(self, question: Question, answer: Answer) -> Caption | str:
        """The caption that an answer makes, or the reason to drop it."""
        if answer.failure is not None:
            return "not answered"
        text = " ".join(answer.text.translate(_TYPOGRAPHY).split()).strip("\"' ")
        labels, bare = self._matcher.read(text)
        asked = {self._names.index(name) for name in question.categories}
        reason = self._reason_to_drop(question, answer, text, bare, labels, asked)
        if reason:
            return reason
        # With the labels: a dog on the grass is no duplicate of a cow there.
        content = f"{_content_words(text)}/{labels}".encode()
        hashed = hashlib.blake2b(content, digest_size=8).digest()
        if hashed in self._seen:
            return "duplicate or nearly"
        self._seen.add(hashed)
        return Caption(text, labels, question.kind)

    def _reason_to_drop(
        self,
        question: Question,
        answer: Answer,
        text: str,
        bare: str,
        labels: tuple[int, ...],
        asked: set[int],
    ) -> str | None:
        """`bare`: the text without names, for a label may be called "C#" or "no parking sign"."""
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
            if (
                runs & _runs(text)
                or named & (set(labels) - asked)
                or content == _content_words(text)
            ):
                return "copies an example"
        return None


def _is_foreign(text: str) -> bool:
    """Whether a sentence has other letters than Latin ones, or small words of other languages."""
    if any(letter.isalpha() and letter > "\u024f" for letter in text):
        return True
    return len(_FOREIGN & set(re.findall(r"\w+", text.lower()))) > 1


def _content_words(text: str) -> str:
    """What makes two sentences near duplicates: the same telling words, whatever their order."""
    return " ".join(sorted(set(re.findall(r"[a-z]+", text.lower())) - _SMALL))


def _runs(text: str) -> set[tuple[str, ...]]:
    """Runs of words so telling that two sentences share one only when one copies the other."""
    words = re.findall(r"[a-z']+", text.lower())
    runs = (tuple(words[i : i + _COPIED_RUN]) for i in range(len(words) - _COPIED_RUN + 1))
    return {run for run in runs if len({word for word in run if len(word) > 3}) >= 3}


def _repeats_itself(text: str) -> bool:
    words = _PLACE.sub("before", text.lower()).split()
    triples = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return len(set(triples)) < len(triples)
