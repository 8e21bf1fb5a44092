"""Question templates: an instruction for chat models, a pattern for base models to complete."""

from __future__ import annotations

import string
from collections import defaultdict
from importlib import resources
from typing import Literal, get_args

import yaml
from pydantic import model_validator

from prompt_tuning.settings import Settings

Fact = Literal["attributes", "aspects", "kinds", "classes", "together"]
Sentence = Literal["specific", "relationship"]
Kind = Literal[Fact, Sentence]
FACTS: tuple[Fact, ...] = get_args(Fact)
SENTENCES: tuple[Sentence, ...] = get_args(Sentence)

_FIELDS: dict[Kind, set[str]] = {
    "attributes": {"count"},
    "aspects": {"name"},
    "kinds": {"name"},
    "classes": {"name"},
    "together": {"name"},
    "specific": {"name", "attribute"},
    "relationship": {"names"},
}


class Template(Settings):
    """One way to ask.

    `kind`: the use of the answers. Category facts come from `attributes` (not about a category),
    `aspects` (which attributes matter for a category), `kinds`, `classes` (the type of a category)
    and `together` (things that appear with it); captions from `specific` (one category and an
    attribute) and `relationship` (a set of categories). `instruction`: for chat models. `heading`,
    `line`: the first and last line of the pattern for base models, with some of the `examples`
    between them.
    """

    kind: Kind
    instruction: str
    heading: str
    line: str
    examples: tuple[str, ...]

    @model_validator(mode="after")
    def _names_its_fields(self) -> Template:
        fields = _FIELDS[self.kind]
        for part in ("instruction", "line"):
            text = getattr(self, part)
            try:
                used = {field for _, field, _, _ in string.Formatter().parse(text) if field}
                text.format_map(defaultdict(str))
            except (ValueError, LookupError) as error:
                raise ValueError(f"{part} has braces that cannot be filled ({error})") from None
            if used - fields:
                raise ValueError(
                    f"{part} has {{{min(used - fields)}}}; a template of kind {self.kind} can fill "
                    f"{', '.join(f'{{{field}}}' for field in sorted(fields))}"
                )
            subject = {"name", "names"} & fields
            if subject - used:
                raise ValueError(
                    f"{part} must contain {{{min(subject)}}}, the category to ask about"
                )
        for example in self.examples:
            if ": " not in example:
                raise ValueError(f"example {example[:60]!r} must be `question: answer`")
        return self


def built_in_templates() -> dict[str, Template]:
    """The templates of `data/questions.yaml`, by name."""
    text = (resources.files("prompt_tuning") / "data" / "questions.yaml").read_text("utf-8")
    return {
        name: Template.model_validate({**raw, "examples": tuple(raw["examples"])})
        for name, raw in yaml.safe_load(text).items()
    }
