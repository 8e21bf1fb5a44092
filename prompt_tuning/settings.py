"""The base of every settings model: strict, frozen, and unforgiving of unknown fields."""

from pydantic import BaseModel, ConfigDict
from pydantic_core import ErrorDetails


class Settings(BaseModel):
    """Settings that a person writes.

    Strict: no bool for an int, no string for a number. Sequences are tuples, so that a settings
    object is hashable through and through. NaN and infinity are refused.

    Raises:
        pydantic.ValidationError: naming each field that is unknown, of another type
            or out of range.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


def message_of(problem: ErrorDetails) -> str:
    """What one of `ValidationError.errors()` says, without pydantic's words before it."""
    return problem["msg"].removeprefix("Value error, ")
