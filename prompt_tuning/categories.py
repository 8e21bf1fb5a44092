"""Categories: what a person wants to tag, with the other words that people use for it."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Annotated

import yaml
from pydantic import Field, field_validator, model_validator

from prompt_tuning.settings import Settings

BUILT_IN = ("coco", "nus", "scenes", "voc")

Name = Annotated[str, Field(min_length=1, max_length=80)]


class Category(Settings):
    """One label: its readable name, synonyms ("sofa": couch) and kinds ("dog": chihuahua).

    Both lists are used by every arm of the evaluation alike, and by noun matching in captions.
    """

    name: Name
    synonyms: tuple[Name, ...] = ()
    kinds: tuple[Name, ...] = ()

    @field_validator("name", "synonyms", "kinds", mode="after")
    @classmethod
    def _one_line_of_words(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for text in (value,) if isinstance(value, str) else value:
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
        owner: dict[str, str] = {}
        for category in self.categories:
            if category.name.lower() in map(str.lower, owner.values()):
                raise ValueError(f"category {category.name!r} is listed twice")
            for word in {word.lower() for word in (*category.names, *category.kinds)}:
                if word in owner:
                    raise ValueError(
                        f"{word!r} stands for two categories: {owner[word]} and {category.name}"
                    )
                owner[word] = category.name
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


def built_in_text(name: str) -> str:
    """The YAML text of a built-in category list."""
    return (resources.files("prompt_tuning") / "data" / f"{name}.yaml").read_text("utf-8")


def built_in(name: str) -> CategoryList:
    """A built-in category list."""
    return CategoryList.model_validate_json(json.dumps(yaml.safe_load(built_in_text(name))))
