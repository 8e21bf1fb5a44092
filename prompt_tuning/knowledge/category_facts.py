"""Category facts: lists about the categories, which the language model gives first."""

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
    """The lists, by category name where they are about one category.

    `attributes`: in which things differ, the most frequent first. `aspects`: the attributes that
    matter for a category. `kinds`: of a category, besides those in the category list. `classes`:
    votes for words for its type. `company`: votes for words for things that appear with it.
    `together`: votes for other categories that appear with it, in either direction.
    """

    attributes: tuple[str, ...] = _FIRST_ATTRIBUTES
    aspects: dict[str, tuple[str, ...]] = {}
    kinds: dict[str, tuple[str, ...]] = {}
    classes: dict[str, Votes] = {}
    company: dict[str, Votes] = {}
    together: dict[str, Votes] = {}

    def attributes_of(self, name: str) -> tuple[str, ...]:
        """The attributes to ask about for a category; at least one."""
        return self.aspects.get(name) or self.attributes

    def companions(self, chosen: Iterable[str]) -> Votes:
        """Votes for the categories that are seen with any of those chosen."""
        votes: Counter[str] = Counter()
        for name in chosen:
            votes.update(self.together.get(name, {}))
        return dict(votes)


def read_category_facts(
    categories: CategoryList, pairs: Iterable[tuple[Question, Answer]], attributes: int
) -> CategoryFacts:
    """Read the lists from the answers. `attributes`: the maximum number of attributes.

    A kind counts if two answers agree on it, because a model rarely repeats a mistake.
    """
    shared = Counter[str]()
    aspects, kinds, classes, company, together = (
        {name: Counter[str]() for name in categories.names} for _ in range(5)
    )
    matcher = NounMatcher(categories.categories)
    for question, answer in pairs:
        items = _items(answer)
        words = [item for item in items if re.fullmatch(r"[a-z]{3,14}", item)]
        if question.kind == "attributes":
            shared.update(words)
            continue
        (name,) = question.categories
        if question.kind == "aspects":
            aspects[name].update(words)
        elif question.kind == "kinds":
            copied = {item for shown in question.shown for item in shown.split(", ")}
            others = {item for item in items if name_key(item) != name_key(name)}
            # In the singular, so that both numbers share their votes.
            heads = (item.rpartition(" ") for item in others)
            kinds[name].update({f"{a}{space}{singular(last)}" for a, space, last in heads} - copied)
        elif question.kind == "classes":
            classes[name].update(items)
        elif question.kind == "together":
            company[name].update(items)
            for found in {categories.names[i] for item in items for i in matcher.find(item)}:
                if found != name:
                    together[name][found] += 1
                    together[found][name] += 1
    # The words in the question itself come first: even nonsense answers leave a usable list.
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
    """The unique items of a comma-separated list, without the last item of a truncated answer."""
    items = [" ".join(item.split()).lower() for item in re.split(r"[,;\n]", answer.text)]
    if not answer.finished:
        items.pop()
    plain = [re.sub(r"^(\d+[.)]|[-*])? ?((an?|the|and) )?", "", item).strip(" .") for item in items]
    return list(dict.fromkeys(item for item in plain if re.fullmatch(r"[a-z][a-z' -]{1,39}", item)))


def confirm_kinds(
    facts: CategoryFacts, categories: CategoryList, pairs: Iterable[tuple[Question, Answer]]
) -> CategoryFacts:
    """Keep a kind only if the model, asked what it is, always names its category."""
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
    """The shared attributes that the model names for a category, filled up to a minimum."""
    named = [word for word in common if word in votes]
    others = [word for word in common if word not in votes]
    return tuple(named + others[: max(0, _LEAST_ATTRIBUTES - len(named))])


def _kinds(category: int, votes: Counter[str], matcher: NounMatcher) -> tuple[str, ...]:
    """Kinds that answers agree on, except "car door", "dog house" and names of other categories."""
    return tuple(
        kind
        for kind in _ranked(votes)
        if votes[kind] >= _VOTES_NEEDED
        and len(kind.split()) <= 3
        and matcher.find(kind) in ((), (category,))
        and matcher.find(kind) == matcher.find(kind.split()[-1])
        and not matcher.find(" ".join(kind.split()[:-1]))
    )
