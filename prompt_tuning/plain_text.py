"""Text files as people's tools write them: UTF-8 or UTF-16, marked or not, lines ended anyhow."""

from __future__ import annotations

import codecs
import re


def plain_lines(content: bytes, source: str) -> list[str]:
    """The lines of a text file, without what ends them.

    UTF-8, or UTF-16 with the byte order mark that Windows tools write. Lines end by LF, CRLF or CR.

    Raises:
        ValueError: naming `source` and the byte, for another encoding.
    """
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    return re.split(r"\r\n|\r|\n", text)
