"""Captions: sentences with labels, made from the language model's answers or read from a file.

A label holds when the sentence names the category; an answer that does not name what was asked
for loses that label. Every sentence that is dropped is counted under one reason.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from prompt_tuning.categories import CategoryList
from prompt_tuning.knowledge.noun_matching import NounMatcher
from prompt_tuning.knowledge.questions import Question
from prompt_tuning.parquet_writer import RowWriter
from prompt_tuning.plain_text import plain_lines
from prompt_tuning.settings import Settings
from prompt_tuning.storage import digest


class CaptionSettings(Settings):
    """Which sentences are kept, and the share that is held out to choose checkpoints on.

    `files`: one's own sentences, one a line: `sentence` or `sentence<TAB>label;label`.
    `templates`: whether CLIP's 80 prompt templates of each category are captions too.
    `allow_missing`: whether to tune although some labels have no caption to tune on.
    """

    files: tuple[str, ...] = ()
    templates: bool = False
    allow_missing: bool = False
    min_words: Annotated[int, Field(ge=1)] = 4
    max_words: Annotated[int, Field(ge=1)] = 60
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _some_length_is_allowed(self) -> CaptionSettings:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} is above max_words {self.max_words}")
        return self


@dataclass(frozen=True)
class Caption:
    """A sentence and the indices of the categories that it shows, ascending."""

    text: str
    labels: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class Answer:
    """What the model wrote to a question; `finished` is false when the token limit cut it.

    `failure`: why the engine could not answer at all, then the text is empty.
    """

    text: str
    finished: bool
    tokens: int
    failure: str | None = None


_SCHEMA = pa.schema(
    {
        "text": pa.string(),
        "labels": pa.list_(pa.string()),
        "kind": pa.string(),
        "question": pa.string(),
        "model": pa.string(),
        "seed": pa.int64(),
        "key": pa.string(),
    }
)

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
        # A private database that SQLite moves to a temporary file when it grows.
        self._seen = sqlite3.connect("", isolation_level=None)
        self._seen.execute("CREATE TABLE seen (hash INTEGER PRIMARY KEY)")
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
        if not self._is_new(f"{_content_words(text)}/{labels}"):
            return "duplicate or nearly"
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

    def _is_new(self, what: str) -> bool:
        hashed = int.from_bytes(hashlib.blake2b(what.encode(), digest_size=8).digest(), signed=True)
        added = self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (hashed,))
        return added.rowcount == 1


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


def is_held_out(caption: Caption, share: float) -> bool:
    """Whether a caption only serves to choose checkpoints: decided by its text alone."""
    return int(digest(caption.text)[:8], 16) / 2**32 < share


def read_caption_file(path: Path, categories: CategoryList) -> list[Caption]:
    """One's own sentences: `sentence`, or `sentence<TAB>label;label`. Labels may be synonyms.

    Without labels, the nouns in the sentence decide.

    Raises:
        OSError: when the file cannot be read.
        ValueError: naming file and row, for a label that is no category or a sentence without; and
            for another encoding than `plain_lines` reads.
    """
    matcher = NounMatcher(categories.categories)
    captions = []
    for row, line in enumerate(plain_lines(path.read_bytes(), str(path)), start=1):
        text, _, labels_text = line.partition("\t")
        if not text.strip():
            continue
        named = set()
        for name in filter(None, map(str.strip, labels_text.split(";"))):
            label = categories.find(name)
            if label is None:
                raise ValueError(f"{path}, row {row}: {name!r} is no category of the list")
            named.add(label)
        labels = tuple(sorted(named)) or matcher.find(text)
        if not labels:
            raise ValueError(f"{path}, row {row}: the sentence names no category; add <TAB>label")
        captions.append(Caption(text.strip(), labels, "file"))
    return captions


class CaptionWriter(RowWriter):
    """Writes captions to a Parquet file as they come, with where each is from.

    Columns: text, labels (names of the categories), kind; for those of a language model also the
    question, model, the seed of its sampling and the key of its shard.
    """

    def __init__(self, path: Path, categories: CategoryList) -> None:
        super().__init__(path, _SCHEMA)
        self._names = categories.names

    def write_caption(self, caption: Caption, **source: str | int) -> None:
        """Add one caption; `source` fills the columns question, model, seed and key."""
        labels = [self._names[label] for label in caption.labels]
        self.write(text=caption.text, labels=labels, kind=caption.kind, **source)


def read_captions(path: Path, categories: CategoryList) -> list[Caption]:
    """Read what a `CaptionWriter` wrote."""
    index = {name: i for i, name in enumerate(categories.names)}
    rows = pq.read_table(path, columns=["text", "labels", "kind"]).to_pylist()
    return [
        Caption(row["text"], tuple(index[name] for name in row["labels"]), row["kind"])
        for row in rows
    ]
