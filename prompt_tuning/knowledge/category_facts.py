"""What the language model says about the categories in lists, before sentences are asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from prompt_tuning.categories import CategoryList
from prompt_tuning.knowledge.dialogue import Answer, Question
from prompt_tuning.knowledge.noun_matching import NounMatcher
from prompt_tuning.label_names import name_key, singular
from prompt_tuning.settings import Settings

_FIRST_ATTRIBUTES = ("colour", "size", "material")
_LEAST_ATTRIBUTES = 4
_VOTES_NEEDED = 2

Votes = dict[str, int]


class CategoryFacts(Settings):
    """The lists, read.

    `attributes`: of all things, the most named first. `aspects`: the attributes of each category.
    `kinds`: kinds of each category besides those that its list has. `classes`: the words for what
    each category is, with votes. `company`: the words for what each is seen with, with votes.
    `together`: the same as categories: how often one was named for another, either way round.
    """

    attributes: tuple[str, ...] = _FIRST_ATTRIBUTES
    aspects: dict[str, tuple[str, ...]] = {}
    kinds: dict[str, tuple[str, ...]] = {}
    classes: dict[str, Votes] = {}
    company: dict[str, Votes] = {}
    together: dict[str, Votes] = {}

    def attributes_of(self, name: str) -> tuple[str, ...]:
        """The attributes to ask a category about, never none."""
        return self.aspects.get(name) or self.attributes

    def companions(self, chosen: Iterable[str]) -> Votes:
        """Categories that were named with any of those chosen, with votes."""
        votes: Counter[str] = Counter()
        for name in chosen:
            votes.update(self.together.get(name, {}))
        return dict(votes)


def read_category_facts(
    categories: CategoryList, pairs: Iterable[tuple[Question, Answer]], attributes: int
) -> CategoryFacts:
    """Read the lists out of the answers; `attributes` is how many are used at most.

    A model's slips hardly ever repeat, so a kind counts when two answers agree on it.
    """
    shared: Counter[str] = Counter()
    aspects: dict[str, Counter[str]] = {name: Counter() for name in categories.names}
    kinds: dict[str, Counter[str]] = {name: Counter() for name in categories.names}
    classes: dict[str, Counter[str]] = {name: Counter() for name in categories.names}
    company: dict[str, Counter[str]] = {name: Counter() for name in categories.names}
    together: dict[str, Counter[str]] = {name: Counter() for name in categories.names}
    matcher = NounMatcher(categories.categories)
    for question, answer in pairs:
        items = _items(answer)
        if question.kind == "attributes":
            shared.update(item for item in items if re.fullmatch(r"[a-z]{3,14}", item))
            continue
        (name,) = question.categories
        if question.kind == "aspects":
            aspects[name].update(item for item in items if re.fullmatch(r"[a-z]{3,14}", item))
        elif question.kind == "kinds":
            copied = {item for shown in question.shown for item in shown.split(", ")}
            others = {item for item in items if name_key(item) != name_key(name)}
            kinds[name].update({_singular(item) for item in others} - copied)
        elif question.kind == "classes":
            classes[name].update(items)
        elif question.kind == "together":
            company[name].update(items)
            for found in {categories.names[i] for item in items for i in matcher.find(item)}:
                if found != name:
                    together[name][found] += 1
                    together[found][name] += 1
    # The words that the question itself gives stand first: a model that answers nonsense leaves
    # a usable list.
    ranked = [word for word in _ranked(shared) if word not in _FIRST_ATTRIBUTES]
    common = (*_FIRST_ATTRIBUTES, *ranked)[: max(attributes, len(_FIRST_ATTRIBUTES))]
    return CategoryFacts(
        attributes=common,
        aspects={name: _aspects(votes, common) for name, votes in aspects.items() if votes},
        kinds={
            name: _kinds(categories.index(name), votes, matcher) for name, votes in kinds.items()
        },
        classes={name: dict(votes) for name, votes in classes.items()},
        company={name: dict(votes) for name, votes in company.items()},
        together={name: dict(sorted(votes.items())) for name, votes in together.items()},
    )


def _items(answer: Answer) -> list[str]:
    """The items of a comma-separated list, each once, without the last where it was cut."""
    items = [" ".join(item.split()).lower() for item in re.split(r"[,;\n]", answer.text)]
    if not answer.finished:
        items.pop()
    plain = [re.sub(r"^(\d+[.)]|[-*])? ?((an?|the|and) )?", "", item).strip(" .") for item in items]
    return list(dict.fromkeys(item for item in plain if re.fullmatch(r"[a-z][a-z' -]{1,39}", item)))


def _singular(item: str) -> str:
    """A kind that was given in the plural: one vote with the singular."""
    *first, last = item.split(" ")
    return " ".join([*first, singular(last)])


def confirm_kinds(
    facts: CategoryFacts, categories: CategoryList, pairs: Iterable[tuple[Question, Answer]]
) -> CategoryFacts:
    """Keep only the kinds of which the model, asked what they are, names their category always."""
    matcher = NounMatcher(categories.categories)
    doubted = {
        (name, kind)
        for question, answer in pairs
        for name, kind in zip(question.categories, question.words, strict=True)
        if answer.failure is None and categories.index(name) not in matcher.find(answer.text)
    }
    kinds = {
        name: tuple(kind for kind in listed if (name, kind) not in doubted)
        for name, listed in facts.kinds.items()
    }
    return facts.model_copy(update={"kinds": kinds})


def _ranked(votes: Counter[str]) -> list[str]:
    return sorted(votes, key=lambda word: (-votes[word], word))


def _aspects(votes: Counter[str], common: tuple[str, ...]) -> tuple[str, ...]:
    """The shared attributes that the model names for a category, filled up where they are few."""
    named = [word for word in common if word in votes]
    others = [word for word in common if word not in votes]
    return tuple(named + others[: max(0, _LEAST_ATTRIBUTES - len(named))])


def _kinds(category: int, votes: Counter[str], matcher: NounMatcher) -> tuple[str, ...]:
    """Kinds that answers agree on, without "car door", "dog house" and other categories."""
    return tuple(
        kind
        for kind in _ranked(votes)
        if votes[kind] >= _VOTES_NEEDED
        and len(kind.split()) <= 3
        and matcher.find(kind) in ((), (category,))
        and matcher.find(kind) == matcher.find(kind.split()[-1])
        and not matcher.find(" ".join(kind.split()[:-1]))
    )
