"""Every field of a config as a page of Markdown, from the settings models themselves.

python -m orchestrator.config.reference > docs/config.md
"""

from __future__ import annotations

import inspect
import json
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from orchestrator.config.models import RunConfig
from orchestrator.sweep.settings import SweepSettings
from prompt_tuning.settings import Settings
from prompt_tuning.tuning.recipe import RECIPES

_PREFACE = """# Configuration reference

After reading this page you know every field of a config, its type and its default.

A config is a YAML file; `configs/` has some to start from. `--set knowledge.llm.engines=2`
overrides a field by its dotted name. Files named in a config are relative to it. An unknown field,
or a value of the wrong type, is refused with a message that says what would be right.

This page is generated: `python -m orchestrator.config.reference > docs/config.md`."""

_RECIPES_PREFACE = """## Recipes

What takes the place of the defaults above, by `vlm.kind`. `embedded` is measured: `prompts` on
label lists and photos that were left out in turn ([left-out.md](left-out.md)), the rest on scenes
([figures.md](figures.md)). `open_clip` is the released recipe of arXiv 2403.01209, which was made
for CLIP RN50 and is untried on SigLIP, but for two things that are argued, not measured: batches of
64, because a list of one's own has too few captions for 512, and no softmax over classes, which
would make an image's labels compete ([paper.yaml](../configs/paper.yaml) has both as released)."""

_WORDS: dict[Any, str] = {
    str: "text",
    bool: "`true` or `false`",
    int: "whole number",
    float: "number",
    Any: "value",
    dict[str, str]: "texts by name",
}
_BOUNDS = {
    "ge": "at least {}",
    "gt": "above {}",
    "le": "at most {}",
    "lt": "below {}",
    "min_length": "{} or more",
    "max_length": "{} or fewer",
}


class Section(NamedTuple):
    """A settings model, the dotted names of the fields that have it, and their default."""

    model: type[Settings]
    paths: list[str]
    default: Settings | None


def config_reference() -> str:
    """The whole page."""
    parts = [_PREFACE]
    for section in _sections():
        parts += [f"## {_heading(section)}", _description(section.model), _table(section)]
    return "\n\n".join([*parts, _RECIPES_PREFACE, _recipes()]) + "\n"


def _recipes() -> str:
    names = sorted({name for recipe in RECIPES.values() for name in recipe})
    rows = [f"| field | {' | '.join(f'`{kind}`' for kind in RECIPES)} |"]
    rows.append(f"| --- |{' --- |' * len(RECIPES)}")
    for name in names:
        values = [f"`{json.dumps(of[name])}`" if name in of else "" for of in RECIPES.values()]
        rows.append(f"| `{name}` | {' | '.join(values)} |")
    return "\n".join(rows)


def _sections() -> list[Section]:
    found: dict[type[Settings], Section] = {}

    def add(path: str, model: type[Settings], default: Settings | None) -> None:
        found.setdefault(model, Section(model, [], default)).paths.append(path)
        for name, field in model.model_fields.items():
            value = getattr(default, name) if default else field.default
            for inner in _settings_in(field.annotation):
                add(_inside(path, name, field), inner, value if isinstance(value, inner) else None)

    add("", RunConfig, None)
    add("sweep", SweepSettings, None)
    return list(found.values())


def _inside(path: str, name: str, field: FieldInfo) -> str:
    dotted = f"{path}.{name}" if path else name
    return f"{dotted}.FIELD" if get_origin(field.annotation) is dict else dotted


def _settings_in(annotation: Any) -> list[type[Settings]]:
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return [annotation]
    return [model for part in get_args(annotation) for model in _settings_in(part)]


def _description(model: type[Settings]) -> str:
    """The model's docstring, after those of the models that it extends."""
    models = [base for base in reversed(model.__mro__) if issubclass(base, Settings)][1:]
    return "\n\n".join(inspect.cleandoc(base.__doc__ or "") for base in models)


def _table(section: Section) -> str:
    headings = {other.model: _heading(other) for other in _sections()}
    rows = ["| field | value | default |", "| --- | --- | --- |"]
    for name, field in section.model.model_fields.items():
        parts = _settings_in(field.annotation)
        if parts:
            linked = _inside(section.paths[0], name, field)
            value = f"[{linked}](#{_anchor(headings[parts[0]])})"
        else:
            value = _value(field.annotation, field.metadata)
        default = getattr(section.default, name) if section.default else field.default
        recipes = {place for recipe in RECIPES.values() for place in recipe}
        own = any(f"{path}.{name}" in recipes for path in section.paths)
        shown = _default(field, default) + (" or a [recipe's](#recipes)" if own else "")
        rows.append(f"| `{name}` | {value} | {shown} |")
    return "\n".join(rows)


def _heading(section: Section) -> str:
    return ", ".join(section.paths) or "The run"


def _anchor(heading: str) -> str:
    """The anchor that GitHub makes from a heading."""
    return heading.lower().translate({ord("."): None, ord(","): None, ord(" "): "-"})


def _value(annotation: Any, metadata: Any = (), plural: bool = False) -> str:
    """Describe the values that a field accepts."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _value(arguments[0], arguments[1].metadata, plural)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_value(part) for part in arguments if part is not NoneType)
    bounds = {
        bound: getattr(limit, bound)
        for limit in metadata
        for bound in _BOUNDS
        if getattr(limit, bound, None) is not None
    }
    limits = ", ".join(_BOUNDS[bound].format(value) for bound, value in bounds.items())
    if origin is tuple:
        count = "" if Ellipsis in arguments else f"{len(arguments)} "
        words = f"list of {count}{_value(arguments[0], plural=True)}"
        if {"min_length", "max_length"} <= bounds.keys():
            least, most = bounds["min_length"], bounds["max_length"]
            limits = f"{most} of them" if least == most else f"{least} to {most} of them"
    else:
        words = _WORDS[annotation] + ("s" if plural else "")
    # Nearly every text must not be empty, so the page leaves that out.
    return f"{words} ({limits})" if limits and annotation is not str else words


def _default(field: FieldInfo, default: Any) -> str:
    if field.is_required():
        return "**required**"
    if _settings_in(field.annotation):
        return ""
    if default is None:
        return "none"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


if __name__ == "__main__":
    print(config_reference(), end="")
