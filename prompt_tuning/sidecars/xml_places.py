"""XML with the place of everything in it, so that an edit leaves every other byte as it was.

An XML library that writes a tree again changes quotes, line ends, and what stands outside the root.
Here expat reads (without entities, DTD and network), and the text itself is edited.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

# Within a start tag that expat has accepted.
_ATTRIBUTE = re.compile(rb"""\s+([^\s=]+)\s*=\s*(?:"[^"]*"|'[^']*')""")
_START_TAG = re.compile(rb"""<(?:[^"'>]|"[^"]*"|'[^']*')*>""")
# Far beyond any sidecar; without limits, a file could be made to take hours.
_DEEPEST, _MOST_PREFIXES = 200, 1000
_XML_SPACE = b" \t\r\n"

Edit = tuple[int, int, bytes]
"""Start and end of a part of the text, and what replaces it."""


@dataclass(frozen=True)
class Attribute:
    """An attribute as `{namespace}name`; the place begins with the white space before it."""

    name: str
    value: str
    start: int
    end: int


@dataclass(eq=False)
class Element:
    """An element as `{namespace}name`, and its places in the text.

    The start tag is `start:opened`, the end tag `closing:end`; of `<a/>` all but `start` are its
    end. `scope`: the namespace of each prefix. `text`: the element's own characters.
    """

    name: str
    prefix: str
    scope: dict[str, str]
    attributes: list[Attribute]
    parent: Element | None
    start: int
    opened: int
    closing: int = 0
    end: int = 0
    children: list[Element] = field(default_factory=list)
    text: str = ""

    @property
    def is_empty_tag(self) -> bool:
        return self.opened == self.end

    def attribute(self, name: str) -> Attribute | None:
        return next((found for found in self.attributes if found.name == name), None)


@dataclass(frozen=True)
class Parsed:
    """The root, all elements in the order of the text, and whether there are comments."""

    root: Element
    elements: list[Element]
    has_comments: bool


def parse(text: bytes) -> Parsed:
    """Read XML in UTF-8 (whatever encoding it declares).

    Raises:
        ValueError: with the line, if it is not well-formed or has a DOCTYPE.
    """
    reader = _Reader(text)
    try:
        return reader.read()
    except expat.ExpatError as error:
        raise ValueError(f"not well-formed: {error}") from None


def edited(text: bytes, edits: Iterable[Edit]) -> bytes:
    """The text after edits, which must not overlap; edits at the same place keep their order."""
    parts, at = [], 0
    for start, end, new in sorted(edits, key=lambda edit: edit[:2]):
        assert start >= at
        parts += [text[at:start], new]
        at = end
    return b"".join([*parts, text[at:]])


def space_before(text: bytes, at: int) -> bytes:
    """The white space in front of a place."""
    return text[len(text[:at].rstrip(_XML_SPACE)) : at]


class _Reader:
    def __init__(self, text: bytes) -> None:
        self._text = text
        self._parser = expat.ParserCreate("utf-8", "}")
        self._parser.ordered_attributes = True
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.StartNamespaceDeclHandler = self._declared
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.CommentHandler = self._comment
        self._elements: list[Element] = []
        self._open: list[Element] = []
        self._new_scope: dict[str, str] = {}
        self._has_comments = False

    def read(self) -> Parsed:
        self._parser.Parse(self._text, True)
        return Parsed(self._elements[0], self._elements, self._has_comments)

    def _doctype(self, *_: object) -> NoReturn:
        raise ValueError("must not have a DOCTYPE")

    def _declared(self, prefix: str | None, uri: str | None) -> None:
        self._new_scope[prefix or ""] = uri or ""

    def _start(self, name: str, values: list[str]) -> None:
        start = self._parser.CurrentByteIndex
        found = _START_TAG.match(self._text, start)
        assert found
        tag = found[0]
        if len(self._open) > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")
        own = [
            match
            for match in _ATTRIBUTE.finditer(tag)
            if match[1] != b"xmlns" and not match[1].startswith(b"xmlns:")
        ]
        attributes = [
            Attribute(_clark(key), value, start + match.start(), start + match.end())
            for key, value, match in zip(values[::2], values[1::2], own, strict=True)
        ]
        parent = self._open[-1] if self._open else None
        scope = parent.scope if parent else {}
        if self._new_scope:
            scope, self._new_scope = {**scope, **self._new_scope}, {}
            if len(scope) > _MOST_PREFIXES:
                raise ValueError(f"more than {_MOST_PREFIXES} namespaces")
        written = re.split(rb"[\s/>]", tag[1:], maxsplit=1)[0].decode()
        prefix = written.rpartition(":")[0]
        element = Element(
            _clark(name), prefix, scope, attributes, parent, start, opened=start + len(tag)
        )
        if parent:
            parent.children.append(element)
        self._elements.append(element)
        self._open.append(element)

    def _end(self, _: str) -> None:
        element = self._open.pop()
        if self._text[element.opened - 2 : element.opened] == b"/>":
            element.closing = element.end = element.opened
        else:
            element.closing = self._parser.CurrentByteIndex
            element.end = self._text.index(b">", element.closing) + 1

    def _characters(self, text: str) -> None:
        if self._open:
            self._open[-1].text += text

    def _comment(self, _: str) -> None:
        self._has_comments = True


def _clark(name: str) -> str:
    return "{" + name if "}" in name else name
