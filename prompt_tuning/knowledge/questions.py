"""The questions to the language model, of three kinds (arXiv 2403.01209, §3.2).

Category-agnostic questions ask for attributes in which things differ, category-specific ones for
what one category looks like under an attribute, and relationship questions for a scene with a set
of categories. Category facts are asked first, because the other questions use them. Each question
carries the categories that its answer should show, so labels are known by construction.

Every random draw depends only on the category and the question's number, and questions come in
blocks of a few categories. So a new category, kind or template changes only its own blocks.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Annotated

from pydantic import Field, model_validator

from prompt_tuning.categories import Category, CategoryList
from prompt_tuning.knowledge.category_facts import CategoryFacts
from prompt_tuning.knowledge.dialogue import Question
from prompt_tuning.knowledge.hashed_sampling import blocks, shuffled, unit_draw, weighted_choice
from prompt_tuning.knowledge.noun_matching import NounMatcher
from prompt_tuning.knowledge.templates import FACTS, Kind, Template
from prompt_tuning.settings import Settings
from prompt_tuning.storage import digest

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Names = tuple[str, ...]

# How often each list is asked for: what several answers agree on is more likely true.
_SAMPLES: dict[Kind, int] = {"attributes": 8, "aspects": 2, "kinds": 4, "classes": 2, "together": 4}
_EXAMPLES_SHOWN = 8
_EXAMPLE_SETS = 6
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


class QuestionSettings(Settings):
    """How many questions are asked.

    `attributes`: the maximum number of attributes. `per_category`: questions about each category,
    from each template of kind `specific`. `relationships`: questions about sets of categories, from
    each template of kind `relationship`; each category starts an equal number of sets, rounded up
    (to a whole number up to 15, by at most an eighth above). `set_shares`: the shares of sets with
    1 to 5 categories. `templates`: a YAML file of templates that replace the built-in ones of the
    same name or are asked in addition. `seed`: of all random draws.
    """

    attributes: Annotated[int, Field(ge=0, le=1000)] = 12
    per_category: Count = 36
    relationships: Count = 600
    set_shares: tuple[Share, Share, Share, Share, Share] = (0.1, 0.6, 0.2, 0.1, 0.0)
    templates: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _shares_make_a_whole(self) -> QuestionSettings:
        if not math.isclose(sum(self.set_shares), 1, abs_tol=1e-6):
            raise ValueError(f"set_shares must add up to 1 (got {sum(self.set_shares):g})")
        return self

    @property
    def asks_something(self) -> bool:
        """Whether a language model is needed."""
        return self.per_category + self.relationships > 0


class QuestionWriter:
    """Writes the questions about a category list: the same ones for the same settings.

    `block_size`: the approximate number of questions per block. Questions are generated lazily:
    consume each block before the next one.
    """

    def __init__(
        self,
        categories: CategoryList,
        settings: QuestionSettings,
        templates: Mapping[str, Template],
        block_size: int,
    ) -> None:
        self._categories = {category.name: category for category in categories.categories}
        self._settings, self.block_size = settings, block_size
        self._templates = templates
        matcher = NounMatcher(categories.categories)
        # By template, the categories that each example names.
        self._examples = {
            name: {
                example: {categories.names[i] for i in matcher.find(example)}
                for example in template.examples
            }
            for name, template in templates.items()
        }

    def count(self, kinds: tuple[Kind, ...]) -> int:
        """The number of questions of these kinds."""
        return sum(
            self._per_category(template.kind)
            * (1 if template.kind == "attributes" else len(self._categories))
            for template in self._templates.values()
            if template.kind in kinds
        )

    def count_checks(self, facts: CategoryFacts) -> int:
        """The number of questions that `checks` yields."""
        templates = sum(template.kind == "classes" for template in self._templates.values())
        return templates * _SAMPLES["classes"] * sum(map(len, facts.kinds.values()))

    def facts(self) -> Iterator[Iterator[Question]]:
        """Blocks of questions for category facts."""
        for name, template in self._templates.items():
            if template.kind == "attributes":
                yield (
                    self._question(name, (), (), n, count=self._settings.attributes)
                    for n in range(self._per_category("attributes"))
                )
            elif template.kind in FACTS:
                for block in self._blocks(template.kind):
                    yield (
                        self._question(name, (asked,), (asked,), n, name=asked)
                        for asked in block
                        for n in range(self._per_category(template.kind))
                    )

    def checks(self, facts: CategoryFacts) -> Iterator[Iterator[Question]]:
        """Blocks of questions about what each kind is that the model has named."""
        for name, template in self._templates.items():
            if template.kind == "classes":
                for block in self._blocks("kinds"):
                    yield (
                        self._question(name, (asked,), (kind,), n, name=kind)
                        for asked in block
                        for kind in facts.kinds.get(asked, ())
                        for n in range(_SAMPLES["classes"])
                    )

    def sentences(self, facts: CategoryFacts) -> Iterator[Iterator[Question]]:
        """Blocks of questions for captions, based on the category facts."""
        for name, template in self._templates.items():
            if template.kind == "specific":
                for block in self._blocks("specific"):
                    yield (q for asked in block for q in self._specific(name, asked, facts))
            elif template.kind == "relationship":
                for block in self._blocks("relationship"):
                    yield (q for asked in block for q in self._relationship(name, asked, facts))

    def _per_category(self, kind: Kind) -> int:
        """The number of questions from one template of this kind about each category."""
        settings = self._settings
        if kind == "specific":
            return settings.per_category
        if kind == "relationship":
            return _round_up(settings.relationships / len(self._categories))
        if not settings.asks_something or (
            kind in ("attributes", "aspects")
            and (settings.attributes == 0 or settings.per_category == 0)
        ):
            return 0
        return _SAMPLES[kind]

    def _blocks(self, kind: Kind) -> list[list[str]]:
        questions = len(self._categories) * self._per_category(kind)
        return blocks(self._categories, max(1, questions // self.block_size)) if questions else []

    def _specific(self, template: str, asked: str, facts: CategoryFacts) -> Iterator[Question]:
        """Half of the questions use the category's own name, which is the main meaning of a tag."""
        attributes = shuffled(facts.attributes_of(asked), template, asked)
        others = shuffled(self._other_words(self._categories[asked], facts), template, asked)
        for n in range(self._per_category("specific")):
            turn = n // 2
            word = others[turn % len(others)] if n % 2 and others else asked
            # In the second round of words, each word meets another attribute.
            attribute = attributes[(turn + turn // len(attributes)) % len(attributes)]
            yield self._question(template, (asked,), (word,), n, name=word, attribute=attribute)

    def _relationship(self, template: str, asked: str, facts: CategoryFacts) -> Iterator[Question]:
        start = unit_draw(self._settings.seed, template, asked)
        for n in range(self._per_category("relationship")):
            # Steps of the golden ratio fill the shares evenly for any number of questions.
            position = (start + n * _GOLDEN_RATIO) % 1
            size = 1 + bisect(list(accumulate(self._settings.set_shares[:-1])), position)
            chosen = [asked]
            while len(chosen) < min(size, len(self._categories)):
                chosen.append(self._companion(chosen, template, n, facts))
            words = []
            for name in chosen:
                draw = (self._settings.seed, template, asked, n, name)
                others = self._other_words(self._categories[name], facts)
                plain = unit_draw(*draw) < 0.6 or not others
                words.append(name if plain else shuffled(others, *draw)[0])
            names = ", ".join(words)
            yield self._question(template, tuple(chosen), tuple(words), n, names=names)

    def _companion(self, chosen: list[str], template: str, n: int, facts: CategoryFacts) -> str:
        """A category that the model has named with those chosen, or any if it has named none."""
        weights = {
            name: float(votes)
            for name, votes in facts.companions(chosen).items()
            if name not in chosen
        } or {name: 1.0 for name in self._categories if name not in chosen}
        return weighted_choice(weights, self._settings.seed, template, n, *chosen)

    @staticmethod
    def _other_words(category: Category, facts: CategoryFacts) -> list[str]:
        kinds = facts.kinds.get(category.name, ())
        return list(dict.fromkeys([*category.names[1:], *category.kinds, *kinds]))

    def _question(
        self, name: str, asked: Names, words: Names, number: int, /, **fields: object
    ) -> Question:
        template = self._templates[name]
        line = template.line.format(**fields)
        # The model would copy from examples that name a category of the question.
        examples = [
            example
            for example in shuffled(template.examples, name, number % _EXAMPLE_SETS)
            if not self._examples[name][example] & set(asked)
        ][:_EXAMPLES_SHOWN]
        return Question(
            kind=template.kind,
            categories=asked,
            words=words,
            instruction=template.instruction.format(**fields),
            pattern="\n".join([template.heading, *examples, line]),
            shown=tuple(example.split(": ", 1)[1] for example in examples),
            seed=int(digest([self._settings.seed, name, asked, words, number])[:8], 16),
        )


def _round_up(share: float) -> int:
    """Round up to a whole number up to 15, by at most an eighth above.

    So a longer category list rarely changes how many sets each category starts, and the shards of
    these questions stay valid.
    """
    step = 2 ** max(0, math.ceil(share).bit_length() - 4)
    return step * math.ceil(share / step)
