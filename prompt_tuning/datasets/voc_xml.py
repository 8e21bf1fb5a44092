"""Images labelled in Pascal VOC's XML, a file for each image, as labelling tools write it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import numpy as np

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages, image_file, labels_over
from prompt_tuning.datasets.voc import OTHER_NAMES, Difficult
from prompt_tuning.images import image_suffixes

LAYOUT = "a folder with VOC XML files (beside their images, or in Annotations/ beside JPEGImages/)"

_DIFFICULT = ("1", "true")  # some tools write "Unspecified"


def read_voc_xml(categories: CategoryList, root: Path, difficult: Difficult) -> LabelledImages:
    """Every XML file below `root` over a run's categories, `(images, categories)`.

    Hidden files and folders and `ImageSets` are not read. An image is what the XML's `filename`
    names, beside the XML or in a folder without XML that lies beside one of those that hold it: in
    the one that the XML's `folder` names, in `JPEGImages`, in `images` or in another. Where it
    names no image, it is the file called like the XML. Classes that are no category of the list
    are `other_classes`. `difficult`: what a class counts as where an image shows only objects that
    are marked so.

    Raises:
        ValueError: naming a file that is not VOC XML, has a DOCTYPE, or may mean several images or
            the image of a file in another folder; when there is no such file; or listing the
            classes when none is a category of the list.
    """
    files = [
        file
        for file in sorted(root.rglob("*.xml"))
        if not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]
    images = _Images(root, files)
    shown: dict[Path, dict[str, bool]] = {}  # of each class, whether an object is not difficult
    owners: dict[Path, Path] = {}
    for file in files:
        filename, folder, objects = _read(file)
        image = images.of(file, filename, folder)
        owner = owners.setdefault(image, file)
        if owner.parent != file.parent:
            raise ValueError(f"{file}: must have an image of its own (got {image}, as {owner} has)")
        of_image = shown.setdefault(image, {})
        for name, sure in objects:
            of_image[name] = of_image.get(name, False) or sure
    if not shown:
        raise ValueError(f"{root}: VOC XML is missing; it must be {LAYOUT}")
    names = sorted({name for of_image in shown.values() for name in of_image})
    if not names:
        raise ValueError(f"{root}: no VOC XML there has an object, so no image has a label")
    named = np.array([[name in of_image for name in names] for of_image in shown.values()])
    certain = np.array([[of.get(name, False) for name in names] for of in shown.values()])
    classes = [(name, *OTHER_NAMES.get(name, ())) for name in names]
    return labels_over(
        categories,
        tuple(shown),
        classes,
        named if difficult == "positive" else certain,
        named & ~certain if difficult == "ignore" else None,
    )


class _Tree(ElementTree.TreeBuilder):
    """Refuses what could define entities, which can grow without end."""

    def doctype(self, *_: str | None) -> NoReturn:
        raise ValueError("must not have a DOCTYPE")


def _read(file: Path) -> tuple[str, str, list[tuple[str, bool]]]:
    """The names of the image and its folder; each object's class and if it is not difficult."""
    try:
        annotation = ElementTree.parse(file, ElementTree.XMLParser(target=_Tree())).getroot()
        if annotation.tag != "annotation":
            raise ValueError(f"must be VOC XML, with <annotation> first (got <{annotation.tag}>)")
        objects = [
            (_text(item, "name"), _text(item, "difficult").lower() not in _DIFFICULT)
            for item in annotation.findall("object")
        ]
        if not all(name for name, _ in objects):
            raise ValueError("each object must have a name")
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{file}: {error}") from None
    filename, folder = (
        _text(annotation, child).replace("\\", "/") for child in ("filename", "folder")
    )
    return filename, Path(folder).name, objects


def _text(element: ElementTree.Element, child: str) -> str:
    return (element.findtext(child) or "").strip()


class _Images:
    """Finds the images of XML files below `root`."""

    def __init__(self, root: Path, files: list[Path]) -> None:
        self._root = root
        self._with_xml = {file.parent for file in files}
        self._above_xml = {folder for file in files for folder in file.parents}
        self._folders: dict[Path, list[Path]] = {}
        self._stems: dict[Path, dict[str, Path]] = {}

    def of(self, file: Path, filename: str, folder: str) -> Path:
        """The image of an XML file; where it would lie, when it is not there.

        Raises:
            ValueError: naming two images, when nothing says which is meant.
        """
        around = list(self._around(file.parent, folder))
        for name in dict.fromkeys((filename, Path(filename).name)):
            for _, folders in around if name else ():
                images = (image_file(of, name) for of in folders)
                if found := [image for image in images if os.path.isfile(image)]:
                    return _only(file, found)
        # In any folder only where nothing better is known: a mask may be called like an image.
        named = filename.lower().endswith(image_suffixes())
        for of_images, folders in around:
            stems = map(self._by_stem, folders if of_images or not named else ())
            if found := [of[file.stem] for of in stems if file.stem in of]:
                return _only(file, found)
        return file.with_name(Path(filename).name or file.name)

    def _around(self, start: Path, folder: str) -> Iterator[tuple[bool, list[Path]]]:
        """Where images may lie, nearest first: whether folders are made for images, and these.

        `start`: where the XML is. `folder`: what it names as its image's folder.
        """
        first = [name.lower() for name in (folder, "JPEGImages", "images")]
        for up in (start, *(up for up in start.parents if up.is_relative_to(self._root))):
            if up == start or up not in self._with_xml:
                yield True, [up]
            inner = Path(*start.relative_to(up).parts[1:])  # Annotations/train, images/train
            inside = {near: [near / inner, near] for near in self._inside(up)}
            for name in first:
                for near in inside:
                    if near.name.lower() == name:
                        yield from ((True, [of]) for of in dict.fromkeys(inside[near]))
            others = [
                of for near in inside if near.name.lower() not in first for of in inside[near]
            ]
            yield False, list(dict.fromkeys(others))

    def _inside(self, up: Path) -> list[Path]:
        """The folders in one that have no XML, however deep, and are not hidden."""
        if up not in self._folders:
            shown = (near for near in up.iterdir() if not near.name.startswith("."))
            self._folders[up] = sorted(
                near for near in shown if near.is_dir() and near not in self._above_xml
            )
        return self._folders[up]

    def _by_stem(self, folder: Path) -> dict[str, Path]:
        if folder not in self._stems:
            files = folder.iterdir() if folder.is_dir() else ()
            images = [file for file in files if file.name.lower().endswith(image_suffixes())]
            self._stems[folder] = {file.stem: file for file in sorted(images)}
        return self._stems[folder]


def _only(file: Path, images: list[Path]) -> Path:
    if len(images) > 1:
        raise ValueError(
            f"{file}: must have one image; {images[0]} and {images[1]} are called as it says "
            "(its <folder> can name the one that is meant)"
        )
    return images[0]
