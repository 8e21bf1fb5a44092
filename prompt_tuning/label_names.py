"""Names of labels, compared as people mean them: `Dog`, `dogs` and `dog ` are one label."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_BETWEEN_WORDS = re.compile(r"[\s_\u2010-\u2015-]+")


def name_key(name: str) -> str:
    """The form in which two names are compared: NFC, case-folded, one blank between words.

    Hyphens and underscores count as blanks.

    >>> name_key(" Traffic_Light"), name_key("t-shirt") == name_key("T shirt")
    ('traffic light', True)
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return _BETWEEN_WORDS.sub(" ", folded).strip()


class LabelNames:
    """Finds a label by any spelling of its name that `name_key` holds equal."""

    def __init__(self, names: Iterable[str]) -> None:
        self._index = {name_key(name): i for i, name in enumerate(names)}

    def find(self, spelling: str) -> int | None:
        """Position of the label that is meant; None when no label has this name."""
        return self._index.get(name_key(spelling))
