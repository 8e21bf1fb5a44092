"""The page of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SweptPoint:
    """x"""

    number: int
    fields: dict[str, Any]
    status: str
    reason: str
    epochs: int
    objective: list[float]
    text_map: list[float]
    selecting_map: list[float]
    curves: list[list[float]]
    seconds: float


@dataclass(frozen=True)
class Compared:
    """x"""

    best: float
    default: float
    difference: tuple[float, float, float]
    best_ci: tuple[float, float]
    default_ci: tuple[float, float]
    where: str


@dataclass(frozen=True)
class SweepData:
    """x"""

    name: str
    axes: list[str]
    log_axes: list[str]
    objective: str
    points: list[SweptPoint]
    best: int
    compared: Compared | None
    epochs: int
    halving: str
    seconds: dict[str, float]
    config_yaml: str
    best_yaml: str
    embedded: bool
    vlm: str


def render_sweep(data: SweepData) -> str:
    """x"""
    return repr(data)
