"""Categories: what a person wants to tag, with the other words that people use for it."""

from __future__ import annotations

import json
import re
from functools import cached_property
from importlib import resources
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from prompt_tuning.label_names import name_key
from prompt_tuning.settings import Settings, message_of

BUILT_IN = ("coco", "nus", "scenes", "voc")

Name = Annotated[str, Field(min_length=1, max_length=80)]
_ONE_NAME = "case, hyphens and number make no other name"


class Category(Settings):
    """One label: its readable name, synonyms ("sofa": couch) and kinds ("dog": chihuahua).

    Both lists are used by every method of the evaluation alike, and by noun matching in captions.
    """

    name: Name
    synonyms: tuple[Name, ...] = ()
    kinds: tuple[Name, ...] = ()

    @field_validator("name", "synonyms", "kinds", mode="after")
    @classmethod
    def _one_line_of_words(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for text in (value,) if isinstance(value, str) else value:
            if re.search("[,;\t]", text):
                raise ValueError(
                    f"{text!r} must be one name, without `,` and `;`, which separate labels; other "
                    "names for it go under `synonyms` in YAML"
                )
            if not text.isprintable():
                raise ValueError(f"{text!a} has a character that cannot be seen; type it anew")
            if text != " ".join(text.split()) or not re.search(r"\w", text):
                raise ValueError(f"{text!r} is not a plain name (words with single spaces)")
        return value

    @property
    def names(self) -> tuple[str, ...]:
        """The name, then its synonyms."""
        return (self.name, *self.synonyms)


class CategoryList(Settings):
    """The categories of one run, in a fixed order: the order of every `(…, classes)` axis."""

    categories: Annotated[tuple[Category, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _no_doubles(self) -> CategoryList:
        owner: dict[str, tuple[str, int]] = {}
        for c, category in enumerate(self.categories):
            for word in (*category.names, *category.kinds):
                before, other = owner.setdefault(name_key(word), (word, c))
                if other == c:
                    continue
                first = self.categories[other].name
                if (before, word) == (first, category.name):
                    also = "" if word == before else f", also as {before!a} ({_ONE_NAME})"
                    raise ValueError(f"category {word!r} is listed twice{also}")
                also = "" if word == before else f" (as {before!a})"
                raise ValueError(
                    f"{word!r} stands for two categories: {first}{also} and {category.name}"
                )
        return self

    def __len__(self) -> int:
        return len(self.categories)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    def index(self, name: str) -> int:
        """Position of a category's name on the classes axis.

        Raises:
            ValueError: when no category has this name.
        """
        return self.names.index(name)

    def find(self, spelling: str) -> int | None:
        """Position of the category with this name or synonym, however a person spells it.

        None when there is none. What makes no difference: see `name_key`.
        """
        return self._places.get(name_key(spelling))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name_key(n): c for c, of in enumerate(self.categories) for n in of.names}


def category_named(name: str) -> Category:
    """The category of this name alone.

    Raises:
        ValueError: in one line, for what no category can be named.
    """
    try:
        return Category(name=name)
    except ValidationError as error:
        reason = message_of(error.errors()[0])
        raise ValueError(f"label {name[:80]!r}: {reason}") from None


def built_in_text(name: str) -> str:
    """The YAML text of a built-in category list."""
    return (resources.files("prompt_tuning") / "data" / f"{name}.yaml").read_text("utf-8")


def built_in(name: str) -> CategoryList:
    """A built-in category list."""
    return CategoryList.model_validate_json(json.dumps(yaml.safe_load(built_in_text(name))))
