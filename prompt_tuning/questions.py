"""The questions that are put to the language model, of three kinds (arXiv 2403.01209, §3.2).

Category-agnostic: attributes that the categories may share. Category-specific: what one category
looks like under an attribute. Relationship: a scene in which a set of categories occurs together.
Labels are known by construction: a question carries the categories that its answer should show.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from prompt_tuning.categories import CategoryList
from prompt_tuning.noun_matching import NounMatcher
from prompt_tuning.settings import Settings
from prompt_tuning.store import digest

Kind = Literal["attributes", "specific", "relationship"]
KINDS: tuple[Kind, ...] = ("attributes", "specific", "relationship")

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]

_EXAMPLES_SHOWN = 4
_EXAMPLE_SETS = 6
_SEED_ATTRIBUTES = ("colour", "size", "material")


class QuestionSettings(Settings):
    """How many questions of each kind are asked.

    `attributes`: how many attributes are asked for and used at most. `per_category`: sentences
    about each category. `relationships`: sentences about sets, whose sizes 1 to 5 are drawn in
    the shares of `set_shares`; every category is drawn about equally often.
    """

    attributes: Annotated[int, Field(ge=0, le=1000)] = 12
    per_category: Count = 30
    relationships: Count = 600
    set_shares: tuple[Share, Share, Share, Share, Share] = (0.1, 0.6, 0.2, 0.1, 0.0)
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _shares_make_a_whole(self) -> QuestionSettings:
        if not math.isclose(sum(self.set_shares), 1, abs_tol=1e-6):
            raise ValueError(f"set_shares add up to {sum(self.set_shares):g}, not to 1")
        return self

    @property
    def asks_something(self) -> bool:
        """Whether a language model is needed at all."""
        return self.per_category + self.relationships > 0


@dataclass(frozen=True)
class Question:
    """One question: for chat models `instruction`, for base models `pattern` to be completed.

    `categories`: indices of what the answer should show. `shown`: the examples in the pattern,
    which must not come back as answers. `seed`: of the sampling of this answer.
    """

    kind: Kind
    categories: tuple[int, ...]
    instruction: str
    pattern: str
    shown: tuple[str, ...]
    seed: int


class QuestionWriter:
    """Writes the questions about one category list, the same ones for the same settings."""

    def __init__(self, categories: CategoryList, settings: QuestionSettings) -> None:
        self.categories = categories
        self.settings = settings
        self._matcher = NounMatcher(categories)
        data = resources.files("prompt_tuning") / "data" / "questions.yaml"
        self._templates: dict[str, dict[str, Any]] = yaml.safe_load(data.read_text("utf-8"))

    def attribute_questions(self) -> Iterator[Question]:
        """A few questions for attributes, each over another draw of the categories."""
        if self.settings.attributes == 0 or self.settings.per_category == 0:
            return
        draws = random.Random(f"{self.settings.seed}/attributes")
        for i in range(8):
            some = draws.sample(self.categories.names, k=min(3, len(self.categories)))
            yield self._question(
                "attributes", (), i, count=self.settings.attributes, categories=", ".join(some)
            )

    def specific_questions(self, attributes: list[str]) -> Iterator[Question]:
        """`per_category` questions for each category: its words and the attributes in turn."""
        for i, category in enumerate(self.categories.categories):
            draws = random.Random(f"{self.settings.seed}/specific/{category.name}")
            words = [*category.names, *category.kinds]
            # Half of the sentences use the plain name, for it is what a tag means first.
            for n in range(self.settings.per_category):
                word = category.name if n % 2 == 0 else words[(n // 2) % len(words)]
                yield self._question(
                    "specific", (i,), n, name=word, attribute=draws.choice(attributes)
                )

    def relationship_questions(self) -> Iterator[Question]:
        """Questions about sets of categories."""
        draws = random.Random(f"{self.settings.seed}/relationship")
        sizes = range(1, 1 + len(self.settings.set_shares))
        pool: list[int] = []
        for n in range(self.settings.relationships):
            size = draws.choices(sizes, self.settings.set_shares)[0]
            chosen: list[int] = []
            while len(chosen) < min(size, len(self.categories)):
                if not pool:
                    pool = draws.sample(range(len(self.categories)), k=len(self.categories))
                candidate = pool.pop()
                if candidate not in chosen:
                    chosen.append(candidate)
            names = []
            for i in chosen:
                category = self.categories.categories[i]
                words = [*category.names, *category.kinds]
                names.append(category.name if draws.random() < 0.6 else draws.choice(words))
            yield self._question("relationship", tuple(chosen), n, names=", ".join(names))

    def _question(
        self, kind: Kind, asked: tuple[int, ...], number: int, **fields: object
    ) -> Question:
        template = self._templates[kind]
        line = template["line"].format(**fields)
        examples = self._examples(kind, number)
        return Question(
            kind=kind,
            categories=asked,
            instruction=template["instruction"].format(**fields),
            pattern="\n".join([template["heading"], *examples, line]),
            shown=tuple(example.split(": ", 1)[1] for example in examples),
            seed=int(digest([self.settings.seed, kind, number, line])[:8], 16),
        )

    def _examples(self, kind: Kind, number: int) -> list[str]:
        """A set of examples that names none of the categories: their words would leak."""
        foreign = [e for e in self._templates[kind]["examples"] if not self._matcher.find(e)]
        draws = random.Random(f"{self.settings.seed}/{kind}/{number % _EXAMPLE_SETS}")
        return draws.sample(foreign, k=min(_EXAMPLES_SHOWN, len(foreign)))


def parse_attributes(answers: list[str], limit: int) -> list[str]:
    """Single words from comma-separated answers, the most frequent first; never none.

    The words that the question itself gives are kept, so that a model that answers nonsense
    leaves a usable list.
    """
    counts: dict[str, int] = dict.fromkeys(_SEED_ATTRIBUTES, len(answers))
    for answer in answers:
        words = {word.strip(" .").lower() for word in answer.split(",")}
        for word in sorted(words):
            if re.fullmatch(r"[a-z]{3,14}", word):
                counts[word] = counts.get(word, 0) + 1
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return ranked[: max(limit, len(_SEED_ATTRIBUTES))]
