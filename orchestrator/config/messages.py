"""Validate settings, and turn pydantic's errors into sentences."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, to_json

from orchestrator.config.renamed_fields import renamed
from orchestrator.errors import InputError
from prompt_tuning.settings import message_of

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], raw: Any, source: str) -> Model:
    """Build a settings object. Raises InputError, with one line per mistake and at most 5."""
    try:
        # In JSON mode, strict models accept a list for a tuple, but not "1" for 1.
        return model.model_validate_json(to_json(raw, inf_nan_mode="constants"))
    except ValidationError as error:
        lines = _explain(model, raw, error.errors(include_url=False))
        more = [f"… and {len(lines) - 5} more"] if len(lines) > 5 else []
        raise InputError("\n".join(f"{source}: {line}" for line in lines[:5] + more)) from None


# Plain English for pydantic's messages that use names of Python or JSON types or comparisons.
_EXPECTED = {
    "bool_type": "true or false",
    "float_type": "a number",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "int_type": "a whole number",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "model_type": "a mapping of fields",
    "string_too_long": "a text of {max_length} or fewer characters",
    "string_too_short": "a text of {min_length} or more characters",
    "string_type": "a text",
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "tuple_type": "a list",
}


def _explain(model: type[BaseModel], raw: Any, problems: list[ErrorDetails]) -> list[str]:
    """One line per wrong field: its name, what is wrong and what would be right."""
    by_place: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for problem in problems:
        by_place.setdefault(_place(raw, problem), []).append(problem)
    lines = []
    for place, found in by_place.items():
        # An error inside a value says more than that the value matches no member of a union.
        if any(other[: len(place)] == place for other in by_place if len(other) > len(place)):
            continue
        name = ".".join(str(part) for part in place)
        if moved := renamed(name):
            lines.append(moved)
            continue
        message = _message(model, place, found)
        lines.append(f"{name}: {message}"[:300] if name else message[:300])
    return lines


def _place(raw: Any, problem: ErrorDetails) -> tuple[int | str, ...]:
    """The location in the file: pydantic's location without the names of a union's members."""
    place: list[int | str] = []
    for part in problem["loc"]:
        if isinstance(raw, list):
            inside = isinstance(part, int) and part < len(raw)
        else:
            inside = isinstance(raw, dict) and part in raw
        if inside:
            raw = raw[part]
            place.append(part)
    return (*place, problem["loc"][-1]) if problem["type"] == "missing" else tuple(place)


def _message(
    model: type[BaseModel], place: tuple[int | str, ...], problems: list[ErrorDetails]
) -> str:
    """Say what is wrong at a place. Several problems there come from the members of a union."""
    kind, value = problems[0]["type"], problems[0]["input"]
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return message_of(problems[0])
    if kind == "extra_forbidden":
        fields = list(_fields_at(model, place[:-1]))
        close = difflib.get_close_matches(str(place[-1]), fields, n=1)
        right = ".".join(str(part) for part in (*place[:-1], *close))
        hint = f"did you mean {right}?" if close else f"the fields are: {', '.join(fields)}"
        return f"unknown field; {hint}"
    expected = [
        _EXPECTED[problem["type"]].format(**problem.get("ctx", {}))
        if problem["type"] in _EXPECTED
        else problem["msg"].removeprefix("Input should be ")
        for problem in problems
    ]
    shown = to_json(value, inf_nan_mode="constants").decode()
    ending = f" (got {shown})" if len(shown) <= 60 else ""
    return f"must be {' or '.join(dict.fromkeys(expected))}{ending}"


def _fields_at(model: type[BaseModel], place: tuple[int | str, ...]) -> dict[str, FieldInfo]:
    """The fields of the model at a place, also inside lists of models."""
    for part in place:
        if isinstance(part, str):
            annotation: Any = model.model_fields[part].annotation
            model = next(iter(get_args(annotation)), annotation)
    return model.model_fields
