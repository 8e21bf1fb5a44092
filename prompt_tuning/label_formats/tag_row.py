"""A row of tags, and names of files as text that every format can hold."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

# {"file", "tags": [{"name", "score"}]}, with "error" for an image that cannot be read
Row = dict[str, Any]

_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Of the bytes that `plain` and `xml_plain` escape; never `.` or `/`, which would move a file.
_ESCAPED = re.compile(r"(?:\\udc(?:[01][0-9a-f]|5c|[89a-f][0-9a-f]))+")


def plain(text: str) -> str:
    r"""Text that can be written as UTF-8: the name of a file may be any bytes.

    A byte that is not valid UTF-8 becomes `\udc80` to `\udcff`; a backslash that would be read as
    the start of such an escape becomes `\udc5c`. `as_named` undoes both.
    """
    escaped = re.sub(r"\\(?=udc[0-9a-f]{2})", r"\\udc5c", text)
    return escaped.encode("utf-8", "backslashreplace").decode()


def xml_plain(text: str) -> str:
    r"""`plain` text that XML can hold too: bytes of other characters become `\udc00` to `\udcff`.

    XML has no control characters but tab and line breaks. `as_named` undoes it.
    """

    def escaped(match: re.Match[str]) -> str:
        return "".join(f"\\udc{byte:02x}" for byte in match[0].encode())

    return _NOT_IN_XML.sub(escaped, text)


def as_named(text: str) -> str:
    """The text that `plain` or `xml_plain` escaped, with the original bytes as `os.fsdecode` has
    them. What these never escape stays as it is."""

    def bytes_of(match: re.Match[str]) -> str:
        return os.fsdecode(bytes.fromhex(match[0].replace("\\udc", "")))

    return _ESCAPED.sub(bytes_of, text) if "\\" in text else text


def file_of(row: Row) -> Path:
    """The file of a row, with the original bytes of its name."""
    return Path(as_named(row["file"]))
