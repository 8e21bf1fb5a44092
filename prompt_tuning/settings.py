"""The base of every settings model: strict, frozen, without unknown fields."""

from pydantic import BaseModel, ConfigDict
from pydantic_core import ErrorDetails


class Settings(BaseModel):
    """Settings that a person writes.

    Strict: no bool for an int, no string for a number. Sequences are tuples, so that a settings
    object is hashable through and through. NaN and infinity are refused.
    Raises `pydantic.ValidationError`, which names each wrong field.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


def message_of(problem: ErrorDetails) -> str:
    """The message of one of `ValidationError.errors()`, without pydantic's prefix."""
    return problem["msg"].removeprefix("Value error, ")
