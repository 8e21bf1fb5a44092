"""Captions: sentences with labels, made from the language model's answers or read from a file.

A label holds when the sentence names the category; an answer that does not name what was asked
for loses that label. Every sentence that is dropped is counted under one reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from prompt_tuning.categories import CategoryList
from prompt_tuning.noun_matching import NounMatcher
from prompt_tuning.questions import Question
from prompt_tuning.settings import Settings
from prompt_tuning.store import digest


class CaptionSettings(Settings):
    """Which sentences are kept, and the share that is held out to choose checkpoints on.

    `files`: one's own sentences, one a line: `sentence` or `sentence<TAB>label;label`.
    """

    files: tuple[str, ...] = ()
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
    """What the model wrote to a question; `finished` is false when the token limit cut it."""

    text: str
    finished: bool
    tokens: int


_SCHEMA = pa.schema(
    [("text", pa.string()), ("labels", pa.list_(pa.int32())), ("kind", pa.string())]
)
_REFUSAL = re.compile(r"\b(as an ai|i am sorry|i'm sorry|i cannot|i can't|language model)\b", re.I)


class CaptionFilter:
    """Turns answers into captions, remembering what it has kept."""

    def __init__(self, categories: CategoryList, settings: CaptionSettings) -> None:
        self._matcher = NounMatcher(categories)
        self._settings = settings
        self._seen: set[tuple[str, tuple[int, ...]]] = set()

    def sort(self, pairs: Iterable[tuple[Question, Answer]]) -> list[Caption | str]:
        """What becomes of each answer: the caption that it makes, or the reason to drop it."""
        return [self._judge(question, answer) for question, answer in pairs]

    def _judge(self, question: Question, answer: Answer) -> Caption | str:
        text = " ".join(answer.text.split()).strip("\"' ")
        labels = self._matcher.find(text)
        reason = self._reason_to_drop(question, answer, text, labels)
        if reason:
            return reason
        self._seen.add((_content_words(text), labels))
        return Caption(text, labels, question.kind)

    def _reason_to_drop(
        self, question: Question, answer: Answer, text: str, labels: tuple[int, ...]
    ) -> str | None:
        words = text.split()
        if not self._settings.min_words <= len(words) <= self._settings.max_words:
            return "too short or too long"
        if not answer.finished or not text.endswith((".", "!")):
            return "truncated"
        if not text.isascii():
            return "not plain English"
        if _REFUSAL.search(text):
            return "refusal"
        if re.search(r"(:|\||_|\d\.|,.*,.*,.*,)", text):
            return "list or markup"
        if _repeats_itself(words):
            return "repeats itself"
        if not set(question.categories) & set(labels):
            return "does not name what was asked for"
        if _content_words(text) in {_content_words(example) for example in question.shown}:
            return "copies an example"
        # With the labels: a dog on the grass is no duplicate of a cow there.
        if (_content_words(text), labels) in self._seen:
            return "duplicate or nearly"
        return None


def _content_words(text: str) -> str:
    """What makes two sentences near duplicates: the same longer words, whatever their order."""
    return " ".join(sorted({w for w in re.findall(r"[a-z]+", text.lower()) if len(w) > 3}))


def _repeats_itself(words: list[str]) -> bool:
    triples = [tuple(w.lower() for w in words[i : i + 3]) for i in range(len(words) - 2)]
    return len(set(triples)) < len(triples)


def is_held_out(caption: Caption, share: float) -> bool:
    """Whether a caption only serves to choose checkpoints: decided by its text alone."""
    return int(digest(caption.text)[:8], 16) / 2**32 < share


def read_caption_file(path: Path, categories: CategoryList) -> list[Caption]:
    """One's own sentences: `sentence`, or `sentence<TAB>label;label`. Without labels, the nouns
    in the sentence decide.

    Raises:
        ValueError: naming file and row, for a label that is no category or a sentence without.
    """
    matcher = NounMatcher(categories)
    captions = []
    for row, line in enumerate(path.read_text("utf-8-sig").splitlines(), start=1):
        text, _, labels_text = line.partition("\t")
        if not text.strip():
            continue
        names = [name.strip() for name in labels_text.split(";") if name.strip()]
        for name in names:
            if name not in categories.names:
                raise ValueError(f"{path}, row {row}: {name!r} is no category of the list")
        labels = tuple(sorted({categories.index(name) for name in names})) or matcher.find(text)
        if not labels:
            raise ValueError(f"{path}, row {row}: the sentence names no category; add <TAB>label")
        captions.append(Caption(text.strip(), labels, "file"))
    return captions


def write_captions(path: Path, captions: list[Caption]) -> None:
    """Write captions as Parquet (text, labels, kind)."""
    rows = [{"text": c.text, "labels": list(c.labels), "kind": c.kind} for c in captions]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), path)


def read_captions(path: Path) -> list[Caption]:
    """Read what `write_captions` wrote."""
    return [
        Caption(row["text"], tuple(row["labels"]), row["kind"])
        for row in pq.read_table(path).to_pylist()
    ]
