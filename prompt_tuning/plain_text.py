"""Plain text, from files of any tool and from names of files, which may be any bytes."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata

_PLAIN = {
    **dict.fromkeys(map(ord, "\u2018\u2019\u02bc"), "'"),
    **dict.fromkeys(map(ord, "\u201c\u201d"), '"'),
    **dict.fromkeys(map(ord, "\u00ad\u200b\ufeff"), ""),  # invisible
}
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Of the bytes that `plain` and `xml_plain` escape; never `.` or `/`, which would move a file.
_ESCAPED = re.compile(r"(?:\\udc(?:[01][0-9a-f]|5c|[89a-f][0-9a-f]))+")


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


def printable(text: str) -> str:
    """Text for a terminal, which would obey some characters that a file's name may have."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
