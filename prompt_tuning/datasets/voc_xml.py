"""Images labelled in Pascal VOC's XML, a file for each image, as labelling tools write it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import numpy as np

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages, image_file, labels_over
from prompt_tuning.datasets.voc import OTHER_NAMES, Difficult
from prompt_tuning.image_files import picture_suffixes

LAYOUT = "a folder with VOC XML files (beside their images, or in Annotations/ beside JPEGImages/)"

_NOT_DIFFICULT = ("", "0", "false")


def read_voc_xml(categories: CategoryList, root: Path, difficult: Difficult) -> LabelledImages:
    """Every XML file below `root` over a run's categories, `(images, categories)`.

    Hidden files and folders and `ImageSets` are not read. An image is what the XML's `filename`
    names, beside the XML or in a folder beside one of those that hold it; where that names no
    image, it is the file that is called like the XML. Classes that are no category of the list are
    `other_classes`. `difficult`: what a class counts as where an image shows only objects that
    are marked so.

    Raises:
        ValueError: naming a file that is not VOC XML, or has a DOCTYPE; when there is none; or
            listing the classes when none is a category of the list.
    """
    images = _Images(root)
    shown: dict[Path, dict[str, bool]] = {}  # of each class, whether an object is not difficult
    for file in sorted(root.rglob("*.xml")):
        if not any(part.startswith(".") for part in file.relative_to(root).parts):
            filename, objects = _read(file)
            of_image = shown.setdefault(images.of(file, filename), {})
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


def _read(file: Path) -> tuple[str, list[tuple[str, bool]]]:
    """The name of the image file, and of each object its class and whether it is not difficult."""
    try:
        annotation = ElementTree.parse(file, ElementTree.XMLParser(target=_Tree())).getroot()
        if annotation.tag != "annotation":
            raise ValueError(f"must be VOC XML, with <annotation> first (got <{annotation.tag}>)")
        objects = [
            (_text(item, "name"), _text(item, "difficult").lower() in _NOT_DIFFICULT)
            for item in annotation.findall("object")
        ]
        if not all(name for name, _ in objects):
            raise ValueError("each object must have a name")
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{file}: {error}") from None
    return _text(annotation, "filename").replace("\\", "/"), objects


def _text(element: ElementTree.Element, child: str) -> str:
    return (element.findtext(child) or "").strip()


class _Images:
    """Finds the images of XML files below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[Path, list[Path]] = {}
        self._stems: dict[Path, dict[str, Path]] = {}

    def of(self, file: Path, filename: str) -> Path:
        """The image of an XML file; where it would lie, when it is not there."""
        folders = self._around(file.parent)
        for name in dict.fromkeys((filename, Path(filename).name)):
            for folder in folders:
                if name and os.path.isfile(image := image_file(folder, name)):
                    return image
        # In all folders only where nothing better is known: a mask may be called like an image.
        named = filename.lower().endswith(picture_suffixes())
        for folder in folders[:1] if named else folders:
            if found := self._by_stem(folder).get(file.stem):
                return found
        return file.with_name(Path(filename).name or file.name)

    def _around(self, folder: Path) -> list[Path]:
        """The folder and those up to `root` that hold it, each followed by what folders it has."""
        if folder not in self._folders:
            upwards = [folder, *(up for up in folder.parents if up.is_relative_to(self._root))]
            self._folders[folder] = [
                near for up in upwards for near in (up, *sorted(filter(Path.is_dir, up.iterdir())))
            ]
        return self._folders[folder]

    def _by_stem(self, folder: Path) -> dict[str, Path]:
        if folder not in self._stems:
            files = [f for f in folder.iterdir() if f.name.lower().endswith(picture_suffixes())]
            self._stems[folder] = {file.stem: file for file in sorted(files)}
        return self._stems[folder]
