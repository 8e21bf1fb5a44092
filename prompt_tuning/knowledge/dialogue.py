"""A question to the language model, and its answer."""

from __future__ import annotations

from dataclasses import dataclass

from prompt_tuning.knowledge.templates import Kind


@dataclass(frozen=True)
class Question:
    """One question: for chat models `instruction`, for base models `pattern` to be completed.

    `categories`: names of what the answer should show, `words`: what they are called here.
    `shown`: the answers in the pattern, which must not come back. `seed`: of the sampling.
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
        """What is asked, as the pattern's last line."""
        return self.pattern.rpartition("\n")[2]


@dataclass(frozen=True)
class Answer:
    """What the model wrote to a question; `finished` is false when the token limit cut it.

    `failure`: why the engine could not answer at all, then the text is empty.
    """

    text: str
    finished: bool
    tokens: int
    failure: str | None = None
