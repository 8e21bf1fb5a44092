"""Text files from any tool: UTF-8 or UTF-16, typographic quotes and invisible characters."""

from __future__ import annotations

import codecs
import re
import unicodedata

_PLAIN = {
    **dict.fromkeys(map(ord, "\u2018\u2019\u02bc"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d"), '"'),
    **dict.fromkeys(map(ord, "\u00ad\u200b\ufeff"), ""),  # invisible
}


def decoded(content: bytes) -> str:
    """The text of a file in UTF-8, or in UTF-16 with the byte order mark of Windows tools.

    Raises:
        ValueError: with the byte's position, for another encoding.
    """
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start}); save it as UTF-8") from None


def plain_lines(content: bytes, source: str) -> list[str]:
    """The lines of a text file without their ends (LF, CRLF or CR).

    Raises:
        ValueError: with `source` and the byte's position, as `decoded`.
    """
    try:
        return re.split(r"\r\n|\r|\n", decoded(content))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def visible(text: str) -> str:
    """NFC text with plain quotes and without invisible characters."""
    return text if text.isascii() else unicodedata.normalize("NFC", text.translate(_PLAIN))
