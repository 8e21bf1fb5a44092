"""Categories: the labels of a run, with their synonyms and kinds."""

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

BUILT_IN = ("coco", "nus", "scenes", "starter", "voc")

Name = Annotated[str, Field(min_length=1, max_length=80)]
_SAME_NAME = "case, hyphens and singular or plural make no difference"


class Category(Settings):
    """A label: its name, synonyms (of "sofa": couch) and kinds (of "dog": chihuahua).

    All methods of the evaluation use both lists, and so does noun matching in captions.
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
                    f"{text!r} must be one name, without `,` and `;`, which separate labels; "
                    "list its other names under `synonyms` in YAML"
                )
            if not text.isprintable():
                raise ValueError(f"{text!a} has an invisible character; type it again")
            if text != " ".join(text.split()) or not re.search(r"\w", text):
                raise ValueError(f"{text!r} is not a plain name (words with single spaces)")
        return value

    @property
    def names(self) -> tuple[str, ...]:
        """The name, then its synonyms."""
        return (self.name, *self.synonyms)


class CategoryList(Settings):
    """The categories of a run, in the order of every `(…, classes)` axis."""

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
                    also = "" if word == before else f", also as {before!a} ({_SAME_NAME})"
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
        """Index of the category with exactly this name.

        Raises:
            ValueError: if there is none.
        """
        return self.names.index(name)

    def find(self, spelling: str) -> int | None:
        """Index of the category with this name or synonym, compared by `name_key`, or None."""
        return self._index.get(name_key(spelling))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {
            name_key(name): c
            for c, category in enumerate(self.categories)
            for name in category.names
        }


def category_named(name: str) -> Category:
    """A category with this name only.

    Raises:
        ValueError: in one line, if the name is not allowed.
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
