"""A page of images with their tags: one HTML file that loads nothing from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from orchestrator.pages.run_page import data_uri, page_template
from orchestrator.tagging.tags_file import Row, file_of
from prompt_tuning.images import small_jpeg
from prompt_tuning.storage import write_atomic

SHEET_IMAGES = 300  # a page of about 5 MB
_SIDE = 240


class Card(NamedTuple):
    """An image of the page; `source` is a data URI, None where there is nothing to show."""

    row: Row
    source: str | None


def write_sheet(page: Path, rows: list[Row], images: int) -> None:
    """Write the page of these rows, which are the first ones of so many images."""
    html = page_template("tags.html.j2").render(
        cards=[Card(row, _source(row)) for row in rows], images=images
    )
    write_atomic(page, html.encode())


def _source(row: Row) -> str | None:
    if "error" in row:
        return None
    try:
        return data_uri(small_jpeg(file_of(row), _SIDE))
    except ValueError:  # it went away meanwhile
        return None
