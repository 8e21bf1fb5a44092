"""A row of tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prompt_tuning.plain_text import as_named

# {"file", "tags": [{"name", "score"}]}, with "error" for an image that cannot be read
Row = dict[str, Any]


def file_of(row: Row) -> Path:
    """The file of a row, with the original bytes of its name."""
    return Path(as_named(row["file"]))
