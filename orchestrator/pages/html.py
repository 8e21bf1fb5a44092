"""The template environment of all pages, with images as data URIs and number formats.

Each page is one HTML file that loads nothing: images are data URIs, charts are inline SVG. The
templates escape all text.
"""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

EXAMPLE_SIDE = 320  # pixels of the longer side of an image in a page


def page_template(name: str) -> Template:
    """A template of `templates/`, with the number formats of this module as filters."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (fixed, signed, between, signed_between, duration, quantity, config_value, data_uri)
    environment.filters |= {function.__name__: function for function in formats}
    return environment.get_template(name)


def data_uri(jpeg: bytes) -> str:
    """An image as the source of an `img` element."""
    return "data:image/jpeg;base64," + b64encode(jpeg).decode("ascii")


def fixed(value: float | None, digits: int = 1) -> str:
    """A number with a real minus sign, or a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None) -> str:
    """A difference with its sign: +1.2, −0.4; plain 0.0 where it rounds to zero."""
    if value is None or round(value, 1) == 0:
        return "–" if value is None else "0.0"
    return f"{value:+.1f}".replace("-", "−")


def between(ends: Sequence[float] | None, shown: Callable[[float], str] = fixed) -> str:
    """An interval: 1.2 to 3.4, or a dash where there is none."""
    if ends is None or math.isnan(ends[0]):
        return "–"
    return f"{shown(ends[0])} to {shown(ends[1])}"


def signed_between(ends: Sequence[float] | None) -> str:
    """The interval of a difference: −0.3 to +1.2, or a dash where there is none."""
    return between(ends, signed)


def duration(seconds: float) -> str:
    """Seconds in readable units: 0.4 s, 42 s, 3 min 5 s, 2 h 4 min."""
    whole = round(seconds)
    if whole >= 3600:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60} s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"


def quantity(number: float, noun: str = "", plural: str = "") -> str:
    """A count with its noun: 1 point, 2,000 points, 3 classes."""
    noun = noun if number == 1 else plural or f"{noun}s" if noun else ""
    return f"{number:,.0f} {noun}".rstrip()


def config_value(value: Any) -> str:
    """A value as a YAML config writes it, numbers with four digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", r"e\1", f"{value:.4g}").replace("e+", "e")
    return str(yaml.safe_dump(value, default_flow_style=True, width=math.inf)).split("\n")[0]
