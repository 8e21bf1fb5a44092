"""CVAT: its XML "CVAT for images 1.1", with our tags as tags of images; and what it exports so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from xml.etree.ElementTree import ParseError, XMLParser
from xml.sax.saxutils import escape, quoteattr

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages
from prompt_tuning.label_formats.annotations import Annotated, labelled_images, located, only_file
from prompt_tuning.label_formats.tag_row import Row
from prompt_tuning.plain_text import as_named, xml_plain
from prompt_tuning.storage import replacing

LAYOUT = "a folder with CVAT's export (CVAT for images 1.1, XML) and the images"

_CHUNK = 1 << 16


@contextmanager
def write_cvat(
    target: Path, labels: Sequence[str], made_with: dict[str, Any]
) -> Iterator[Callable[[Row], None]]:
    """Give a function that adds a row's image. Scores are left out: CVAT's tags have none."""
    number = 0

    def write(row: Row) -> None:
        nonlocal number
        tags = "".join(
            f'    <tag label={_quoted(tag["name"])} source="auto"></tag>\n' for tag in row["tags"]
        )
        name = _quoted(row["file"])
        stream.write(f'  <image id="{number}" name={name}>\n{tags}  </image>\n')
        number += 1

    listed = "".join(
        f"        <label><name>{escape(xml_plain(name))}</name><attributes></attributes></label>\n"
        for name in labels
    )
    with replacing(target) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
            f"  <meta>\n    <task>\n      <labels>\n{listed}      </labels>\n    </task>\n"
            "  </meta>\n"
        )
        yield write
        stream.write("</annotations>\n")


def _quoted(value: str) -> str:
    return quoteattr(xml_plain(value))


def read_cvat(categories: CategoryList, root: Path) -> LabelledImages:
    """Read the one XML file in `root`: CVAT's export as "CVAT for images 1.1".

    Tags count, and the labels of shapes. An image without any shows none of the labels.

    Raises:
        ValueError: with the file and the line, for what is not such an export or has a DOCTYPE;
            or as `labelled_images`.
    """
    file = only_file(root, "*.xml", LAYOUT)
    content = _Content()
    parser = XMLParser(target=content)
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                parser.feed(chunk)
        parser.close()
    except (ParseError, ValueError, LookupError) as error:
        place = content.place and f"{content.place}: "
        raise ValueError(f"{file}: {place}{error}") from None
    images = located([root, root / "images"], content.images, root)
    return labelled_images(categories, file, images, content.labels)


class _Content:
    """Takes the elements as they are read, so that no tree is built."""

    def __init__(self) -> None:
        self.images: list[Annotated] = []
        self.labels: list[str] = []
        self.place = ""
        self._path: list[str] = []
        self._name = ""
        self._image = ""
        self._shown: set[str] = set()

    def doctype(self, *_: str | None) -> NoReturn:
        raise ValueError("must not have a DOCTYPE")  # its entities can expand without end

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._path and tag != "annotations":
            raise ValueError(f"must be CVAT's XML, with <annotations> first (got <{tag}>)")
        if tag == "track":
            raise ValueError('is CVAT for video; export it as "CVAT for images 1.1"')
        if tag == "image":
            self.place = f"image {len(self.images)}"
            if "name" not in attributes:
                raise ValueError("name is missing")
            self._image, self._shown = attributes["name"], set()
        elif self._path[-1:] == ["image"] and "label" in attributes:
            self._shown.add(as_named(attributes["label"]))
        self._path.append(tag)
        self._name = ""

    def data(self, text: str) -> None:
        if self._path[-2:] == ["label", "name"]:
            self._name += text

    def end(self, tag: str) -> None:
        if self._path[-2:] == ["label", "name"]:
            self.labels.append(as_named(self._name.strip()))
        if tag == "image":
            self.images.append(Annotated(self.place, self._image, frozenset(self._shown)))
        self._path.pop()

    def close(self) -> None:
        """Called by the parser at the end."""
