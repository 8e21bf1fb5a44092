"""A question to the language model, and its answer."""

from __future__ import annotations

from dataclasses import dataclass

from prompt_tuning.knowledge.templates import Kind


@dataclass(frozen=True)
class Question:
    """A question, as `instruction` for chat models and as `pattern` for base models to complete.

    `categories`: the names of those that the answer should show. `words`: the words for them in
    this question. `shown`: the example answers in the pattern, which an answer must not copy.
    `seed`: for sampling the answer.
    """

    kind: Kind
    categories: tuple[str, ...]
    words: tuple[str, ...]
    instruction: str
    pattern: str
    shown: tuple[str, ...]
    seed: int

    @property
    def line(self) -> str:
        """The last line of the pattern, which the answer completes."""
        return self.pattern.rpartition("\n")[2]


@dataclass(frozen=True)
class Answer:
    """The model's answer to a question.

    `finished`: false if the token limit cut the text. `failure`: why no engine could answer; the
    text is empty then.
    """

    text: str
    finished: bool
    tokens: int
    failure: str | None = None
