"""An XMP packet: reads its keywords and our record, and edits these without touching another byte.

Programs write the same data in many forms: properties as elements or attributes, in one or several
`rdf:Description`, lists as `rdf:Bag` or `rdf:Seq`, in UTF-8 or UTF-16. All are read. What we add to
a list takes the form of its neighbours; the rest is in an `rdf:Description` of our own.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from xml.sax.saxutils import escape, quoteattr

from prompt_tuning.sidecars.merge import Keywords, our_paths, ours
from prompt_tuning.sidecars.record import LISTS, NAMESPACE, TEXTS, Record, read_record
from prompt_tuning.sidecars.xml_places import (
    Attribute,
    Edit,
    Element,
    edited,
    parse,
    space_before,
)

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC = "http://purl.org/dc/elements/1.1/"
_LR = "http://ns.adobe.com/lightroom/1.0/"
_ROOTS = ("{adobe:ns:meta/}xmpmeta", "{adobe:ns:meta/}xapmeta", f"{{{_RDF}}}RDF")
_SUBJECT = f"{{{_DC}}}subject"
_HIERARCHY = f"{{{_LR}}}hierarchicalSubject"
_DESCRIPTION, _VALUE = f"{{{_RDF}}}Description", f"{{{_RDF}}}value"
_CONTAINERS = tuple(f"{{{_RDF}}}{name}" for name in ("Bag", "Seq", "Alt"))
_NOT_PROPERTIES = ("{http://www.w3.org/XML/1998/namespace}", f"{{{_RDF}}}")

NEW = b"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="datafree">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 </rdf:RDF>
</x:xmpmeta>
"""
"""A packet without properties."""


@dataclass(frozen=True)
class _Property:
    """One place where a property stands: an element, or an attribute of `description`.

    `items`: its texts, each with its element if it is in a list; None for what is no text.
    """

    description: Element
    element: Element | None
    attribute: Attribute | None
    container: Element | None
    items: list[tuple[str | None, Element | None]]

    @property
    def texts(self) -> list[str]:
        return [text for text, _ in self.items if text]


class Packet:
    """The content of a sidecar.

    Raises:
        ValueError: without the file's name, if it is not XMP that can be edited safely.
    """

    def __init__(self, content: bytes) -> None:
        self._mark, self._codec = _encoding(content)
        try:
            text = content[len(self._mark) :].decode(self._codec)
            if self._encoded(text.encode()) != content:
                raise ValueError("its encoding cannot be kept")
            self._text = text.encode()
            self._parsed = parse(self._text)
        except (ValueError, LookupError) as error:  # UnicodeError is a ValueError
            raise ValueError(f"not XMP ({error})") from None
        found = [e for e in self._parsed.elements if e.name == f"{{{_RDF}}}RDF"]
        if self._parsed.root.name not in _ROOTS or len(found) != 1:
            raise ValueError(f"not XMP (one rdf:RDF in x:xmpmeta, got {self._parsed.root.name})")
        self._rdf = found[0]
        self._descriptions = [e for e in self._rdf.children if e.name == _DESCRIPTION]

    @cached_property
    def keywords(self) -> Keywords:
        """The keywords, paths and our record."""
        texts = {name: " ".join(self._texts(_ours(name))) for name in TEXTS}
        lists = {name: self._texts(_ours(name)) for name in LISTS}
        return Keywords(
            tuple(self._texts(_SUBJECT)),
            tuple(self._texts(_HIERARCHY)),
            read_record(texts, lists),
        )

    @cached_property
    def is_bare(self) -> bool:
        """Whether it has no keyword, property or comment: nothing that anybody would miss."""
        others = [e for e in self._rdf.children if e.name != _DESCRIPTION]
        properties = [
            *(child.name for description in self._descriptions for child in description.children),
            *(a.name for d in self._descriptions for a in d.attributes if _is_property(a)),
        ]
        listed = [*self.keywords.flat, *self.keywords.paths]
        beside = set(properties) - {_SUBJECT, _HIERARCHY}  # a list may be there and empty
        return not (others or beside or listed or self._parsed.has_comments)

    def without_ours(self) -> bytes:
        """The content after our tags, paths and record are taken out; the rest stays as it is."""
        flat, paths = set(ours(self.keywords)), set(our_paths(self.keywords))
        gone: set[Element | Attribute] = set()
        for name, mine in ((_SUBJECT, flat), (_HIERARCHY, paths)):
            for found in self._properties(name):
                gone |= _gone(found, mine)
        for name in (*TEXTS, *LISTS):
            for found in self._properties(_ours(name)):
                gone.add(found.element or found.attribute or found.description)
        for description in self._descriptions:
            own = [a for a in description.attributes if _is_property(a)]
            inside = {*description.children, *own}
            if inside and inside <= gone:
                gone = {*(gone - inside), description}
        edits: list[Edit] = []
        for one in gone:
            start = one.start
            if isinstance(one, Element):
                start -= len(space_before(self._text, start))
            edits.append((start, one.end, b""))
        return self._encoded(_without_our_prefix(edited(self._text, edits)))

    def with_ours(self, record: Record) -> bytes:
        """The content with a record, its tags and its paths; it must have none of ours before."""
        edits: list[Edit] = []
        new: list[tuple[str, list[str]]] = []
        for prefixed, name, items in (
            ("dc:subject", _SUBJECT, list(record.tags)),
            ("lr:hierarchicalSubject", _HIERARCHY, list(record.paths)),
        ):
            if not items:
                continue
            where = self._properties(name)
            elements = [found for found in where if found.element]
            listed = max(elements, key=lambda found: found.container is not None, default=None)
            if listed:
                edits.append(self._extended(listed, items))
            else:  # an attribute holds one text: it moves into our list
                for found in where:
                    assert found.attribute
                    edits.append((found.attribute.start, found.attribute.end, b""))
                    items = [*found.texts, *items]
                new.append((prefixed, items))
        edits.append(self._description(record, new))
        content = self._encoded(edited(self._text, edits))
        before, after = self.keywords, Packet(content).keywords
        wanted = ([*before.flat, *record.tags], [*before.paths, *record.paths], record)
        if (sorted(after.flat), sorted(after.paths), after.record) != (
            sorted(wanted[0]),
            sorted(wanted[1]),
            wanted[2],
        ):
            raise ValueError("not XMP that can be edited safely")
        return content

    def _encoded(self, text: bytes) -> bytes:
        return self._mark + text.decode().encode(self._codec, "xmlcharrefreplace")

    def _texts(self, name: str) -> list[str]:
        return [text for found in self._properties(name) for text in found.texts]

    def _properties(self, name: str) -> list[_Property]:
        """Wherever a property stands. Raises ValueError for a form that cannot be edited."""
        found = []
        for description in self._descriptions:
            if attribute := description.attribute(name):
                items: list[tuple[str | None, Element | None]] = [(attribute.value.strip(), None)]
                found.append(_Property(description, None, attribute, None, items))
            for child in description.children:
                if child.name == name:
                    found.append(_property(description, child))
        return found

    def _extended(self, listed: _Property, items: list[str]) -> Edit:
        """Adds items to a list, in the form of its last item."""
        assert listed.element
        container = listed.container
        if container is None:  # a text without a list
            rdf = _rdf_prefix(listed.element)
            bag, tag = f"<{rdf}Bag>".encode(), _start_tag(self._text, listed.element)
            inside = bag + _items([*listed.texts, *items], rdf) + f"</{rdf}Bag>".encode()
            return _filled(listed.element, tag, inside)
        rdf = container.prefix and f"{container.prefix}:"
        if not container.children:
            return _filled(container, _start_tag(self._text, container), _items(items, rdf))
        last = container.children[-1]
        space = space_before(self._text, last.start)
        added = b"".join(space + _items([item], rdf) for item in items)
        return last.end, last.end, added

    def _description(self, record: Record, lists: list[tuple[str, list[str]]]) -> Edit:
        """Adds our `rdf:Description`, after the others and indented as they are."""
        children = self._rdf.children
        at = children[-1].end if children else self._rdf.opened
        line = b"\r\n" if b"\r\n" in self._text else b"\n"
        space = space_before(self._text, children[-1].start) if children else line + b"  "
        space = line + space.rpartition(b"\n")[2] if b"\n" in space else b""
        deeper = [space and space + b" " * step for step in range(4)]
        rdf = _rdf_prefix(self._rdf)
        scope = {"dc": _DC, "lr": _LR, "datafree": NAMESPACE}
        if rdf == "rdf:" and self._rdf.scope.get("rdf") != _RDF:
            scope["rdf"] = _RDF
        head = [f"<{rdf}Description {rdf}about={self._about()}"]
        head += [f"xmlns:{prefix}={quoteattr(uri)}" for prefix, uri in scope.items()]
        parts = [space, (deeper[2] or b" ").join(map(str.encode, head)), b">"]
        for name, items in [
            *lists,
            *((f"datafree:{name}", items) for name, items in record.lists().items()),
        ]:
            if items:
                parts += [deeper[1], f"<{name}>".encode(), deeper[2], f"<{rdf}Bag>".encode()]
                for item in items:
                    parts += [deeper[3], _items([item], rdf)]
                parts += [deeper[2], f"</{rdf}Bag>".encode(), deeper[1], f"</{name}>".encode()]
        for name, text in record.texts().items():
            parts += [deeper[1], f"<datafree:{name}>{escape(text)}</datafree:{name}>".encode()]
        parts += [space, f"</{rdf}Description>".encode()]
        if self._rdf.is_empty_tag:
            end = line if space else b""
            return _filled(self._rdf, _start_tag(self._text, self._rdf), b"".join([*parts, end]))
        return at, at, b"".join(parts)

    def _about(self) -> str:
        """What the other descriptions are about, quoted: all must be about the same."""
        for description in self._descriptions:
            for name in (f"{{{_RDF}}}about", "about"):
                if found := description.attribute(name):
                    return quoteattr(found.value)
        return '""'


def _without_our_prefix(text: bytes) -> bytes:
    """Text whose descriptions do not declare our namespace, unless it is in use."""
    if NAMESPACE.encode() not in text:
        return text
    elements = parse(text).elements
    names = [*(e.name for e in elements), *(a.name for e in elements for a in e.attributes)]
    if any(name.startswith(_ours("")) for name in names):
        return text
    pattern = rb"""\s+xmlns:[\w.-]+\s*=\s*["']%s["']""" % re.escape(NAMESPACE.encode())
    edits: list[Edit] = []
    for element in elements:
        if element.name == _DESCRIPTION:
            found = re.finditer(pattern, text[element.start : element.opened])
            edits += [(element.start + m.start(), element.start + m.end(), b"") for m in found]
    return edited(text, edits)


def _ours(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"


def _is_property(attribute: Attribute) -> bool:
    return attribute.name.startswith("{") and not attribute.name.startswith(_NOT_PROPERTIES)


def _encoding(content: bytes) -> tuple[bytes, str]:
    """The byte order mark and the name of a packet's encoding."""
    for mark, codec in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if content.startswith(mark):
            return mark, codec
    if content.startswith((b"<\0", b"\0<")):
        return b"", "utf-16-le" if content[:1] == b"<" else "utf-16-be"
    declared = re.match(rb"""<\?xml[^>]*?encoding\s*=\s*["']([\w.-]+)""", content)
    name = declared[1].decode() if declared else "utf-8"
    # Codecs such as "hex" turn text into anything.
    plain = re.fullmatch(r"(?i)utf-?8|us-ascii|iso-8859-\d+|windows-125\d|latin-?1|ascii", name)
    return b"", name if plain else "utf-8"


def _property(description: Element, element: Element) -> _Property:
    """Raises ValueError for a form that is neither a list nor a text."""
    container = element.children[0] if element.children else None
    in_rdf = any(found.name.startswith(f"{{{_RDF}}}") for found in element.attributes)
    if in_rdf or len(element.children) > 1 or (container and container.name not in _CONTAINERS):
        raise ValueError(f"not XMP that can be edited safely: {element.name} is not a list")
    if container is None:
        text = element.text.strip()
        return _Property(description, element, None, None, [(text, None)] if text else [])
    listed = [(_item_text(item), item) for item in container.children]
    return _Property(description, element, None, container, [*listed])


def _item_text(item: Element) -> str | None:
    """The text of an item of a list, also of one with qualifiers; None if it has none."""
    if resource := item.attribute(f"{{{_RDF}}}resource"):
        return resource.value.strip()
    for holder in (item, *(child for child in item.children if child.name == _DESCRIPTION)):
        if value := holder.attribute(_VALUE):
            return value.value.strip()
        for child in holder.children:
            if child.name == _VALUE:
                return child.text.strip()
    return None if item.children else item.text.strip()


def _gone(found: _Property, mine: set[str]) -> set[Element | Attribute]:
    """What to take out so that a property is without `mine`."""
    kept = [text for text, _ in found.items if text not in mine]
    if len(kept) == len(found.items):
        return set()
    if not kept:
        whole = found.element or found.attribute
        return {whole} if whole else set()
    return {item for text, item in found.items if item and text in mine}


def _rdf_prefix(element: Element) -> str:
    """A prefix for RDF's names with its colon; attributes cannot do without one."""
    prefixes = (prefix for prefix, uri in element.scope.items() if uri == _RDF and prefix)
    return f"{next(prefixes, 'rdf')}:"


def _items(texts: Iterable[str], rdf: str) -> bytes:
    return "".join(f"<{rdf}li>{escape(text)}</{rdf}li>" for text in texts).encode()


def _start_tag(text: bytes, element: Element) -> bytes:
    """The start tag, also of `<a/>`, as one that content can follow."""
    tag = text[element.start : element.opened]
    return tag[:-2].rstrip() + b">" if element.is_empty_tag else tag


def _filled(element: Element, start_tag: bytes, inside: bytes) -> Edit:
    """Replaces an element's content."""
    if not element.is_empty_tag:
        return element.opened, element.closing, inside
    # The end tag has the name of the start tag as it is written.
    name = re.split(rb"[\s>]", start_tag[1:], maxsplit=1)[0]
    return element.start, element.end, start_tag + inside + b"</" + name + b">"


def changes(before: Keywords, after: Record | None) -> Iterator[str]:
    """What a new record changes, as `+dog`, `−cat`."""
    was, now = ours(before), tuple(after.tags) if after else ()
    yield from (f"+{name}" for name in now if name not in was)
    yield from (f"−{name}" for name in was if name not in now)
