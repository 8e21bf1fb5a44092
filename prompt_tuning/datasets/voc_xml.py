"""Images with labels in Pascal VOC's XML format, one file per image, as labelling tools write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import numpy as np

from prompt_tuning.categories import CategoryList
from prompt_tuning.datasets.labelled_images import LabelledImages, existing_image, labels_over
from prompt_tuning.datasets.voc import OTHER_NAMES, Difficult
from prompt_tuning.images import image_suffixes

LAYOUT = "a folder with VOC XML files (beside their images, or in Annotations/ beside JPEGImages/)"

_DIFFICULT = ("1", "true")  # some tools write "Unspecified"


def read_voc_xml(categories: CategoryList, root: Path, difficult: Difficult) -> LabelledImages:
    """Read all XML files below `root` over a run's categories, labels `(images, categories)`.

    Hidden files and folders are skipped. The image has the XML's `filename`, or else the name of
    the XML file. It is looked for next to the XML file, then in sibling folders (without XML files)
    of the folders around it: first the one that the XML's `folder` names, then `JPEGImages`,
    `images` and others. Classes that are not in the category list become `other_classes`.
    `difficult`: how a class counts if an image shows only objects of it marked as difficult.

    Raises:
        ValueError: with the file, if it is not VOC XML, has a DOCTYPE, matches several images, or
            matches the image of a file in another folder; if there are no files; or with the
            classes, if none of them is in the category list.
    """
    files = [
        file
        for file in sorted(root.rglob("*.xml"))
        if not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]
    images = _Images(root, files)
    # By image and class: whether any object is not difficult.
    shown: dict[Path, dict[str, bool]] = {}
    owners: dict[Path, Path] = {}
    for file in files:
        filename, folder, objects = _read(file)
        image = images.find(file, filename, folder)
        owner = owners.setdefault(image, file)
        if owner.parent != file.parent:
            raise ValueError(f"{file}: must have an image of its own (got {image}, as {owner} has)")
        classes = shown.setdefault(image, {})
        for name, sure in objects:
            classes[name] = classes.get(name, False) or sure
    if not shown:
        raise ValueError(f"{root}: VOC XML is missing; it must be {LAYOUT}")
    names = sorted({name for classes in shown.values() for name in classes})
    if not names:
        raise ValueError(f"{root}: no image has a label: the VOC XML files list no objects")
    named = np.array([[name in classes for name in names] for classes in shown.values()])
    certain = np.array([[classes.get(name, False) for name in names] for classes in shown.values()])
    all_names = [(name, *OTHER_NAMES.get(name, ())) for name in names]
    return labels_over(
        categories,
        tuple(shown),
        all_names,
        named if difficult == "positive" else certain,
        named & ~certain if difficult == "ignore" else None,
    )


class _Tree(ElementTree.TreeBuilder):
    """Refuses a DOCTYPE, because its entities can expand without end."""

    def doctype(self, *_: str | None) -> NoReturn:
        raise ValueError("must not have a DOCTYPE")


def _read(file: Path) -> tuple[str, str, list[tuple[str, bool]]]:
    """The file name and folder name of the image; each object's class and whether it is not
    difficult."""
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
    filename, folder = (_text(annotation, tag).replace("\\", "/") for tag in ("filename", "folder"))
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

    def find(self, file: Path, filename: str, folder: str) -> Path:
        """The image of an XML file, or its expected path if it does not exist.

        Raises:
            ValueError: with two images, if both match equally well.
        """
        around = list(self._around(file.parent, folder))
        for name in dict.fromkeys((filename, Path(filename).name)):
            for _, folders in around if name else ():
                images = (existing_image(near, name, self._root) for near in folders)
                if found := [image for image in images if image]:
                    return _only(file, found)
        # Other folders only if `filename` is not an image: a mask may have the same stem.
        named = filename.lower().endswith(image_suffixes())
        for for_images, folders in around:
            stems = map(self._by_stem, folders if for_images or not named else ())
            if found := [by_stem[file.stem] for by_stem in stems if file.stem in by_stem]:
                return _only(file, found)
        return file.with_name(Path(filename).name or file.name)

    def _around(self, start: Path, folder: str) -> Iterator[tuple[bool, list[Path]]]:
        """Groups of folders around `start` that may have the image, nearest first, and whether
        they are meant for images. `folder`: the image folder that the XML file names."""
        first = [name.lower() for name in (folder, "JPEGImages", "images")]
        for up in (start, *(up for up in start.parents if up.is_relative_to(self._root))):
            if up == start or up not in self._with_xml:
                yield True, [up]
            inner = Path(*start.relative_to(up).parts[1:])  # Annotations/train, images/train
            inside = {near: [near / inner, near] for near in self._inside(up)}
            for name in first:
                for near in inside:
                    if near.name.lower() == name:
                        yield from ((True, [one]) for one in dict.fromkeys(inside[near]))
            others = [
                one for near in inside if near.name.lower() not in first for one in inside[near]
            ]
            yield False, list(dict.fromkeys(others))

    def _inside(self, up: Path) -> list[Path]:
        """The folders in `up` that are not hidden and have no XML files at any depth."""
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
            f"{file}: must have one image; {images[0]} and {images[1]} both match "
            "(name the right one's folder in <folder>)"
        )
    return images[0]
