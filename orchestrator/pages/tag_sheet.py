"""The tag sheet: one self-contained HTML file of images with their tags."""

from __future__ import annotations

from pathlib import Path

from orchestrator.pages.html import data_uri, page_template
from prompt_tuning.images import small_jpeg
from prompt_tuning.label_formats.tag_row import Row, file_of
from prompt_tuning.storage import write_atomic

SHEET_IMAGES = 300  # a page of about 5 MB
_SIDE = 240  # pixels


def write_sheet(page: Path, rows: list[Row], images: int) -> None:
    """Write the page of these rows, the first ones of `images` images in all."""
    html = page_template("tags.html.j2").render(
        cards=[(row, _source(row)) for row in rows], images=images
    )
    write_atomic(page, html.encode())


def _source(row: Row) -> str | None:
    """The image as a data URI, or None where the file cannot be shown."""
    if "error" in row:
        return None
    try:
        return data_uri(small_jpeg(file_of(row), _SIDE))
    except ValueError:  # deleted or changed since it was tagged
        return None
