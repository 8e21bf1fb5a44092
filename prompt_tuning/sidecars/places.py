"""Where the sidecar of an image is, and which image a sidecar is of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from prompt_tuning.images import image_suffixes

Style = Literal["darktable", "adobe"]
STYLES: tuple[Style, ...] = ("darktable", "adobe")
"""`IMG_1.jpg.xmp`, as darktable and digiKam name it, and `IMG_1.xmp`, as Adobe's programs do."""


class Place(NamedTuple):
    """Where an image's sidecar is or will be.

    `other`: a sidecar of the other style that exists beside it. `shared_with`: a file of the same
    stem, such as the raw photo, which has the same sidecar in Adobe's style.
    """

    sidecar: Path
    other: Path | None
    shared_with: Path | None


class Places:
    """Finds sidecars of images and images of sidecars, which come folder by folder.

    A folder is listed once while its files come.
    """

    def __init__(self, style: Style | None = None) -> None:
        self._style = style
        self._listed: tuple[Path, dict[str, list[str]]] | None = None

    def of(self, image: Path) -> Place:
        """The sidecar of an image in the style; without one, what exists, or darktable's."""
        candidates = {each: _sidecar(image, each) for each in STYLES}
        existing = [each for each in STYLES if os.path.lexists(candidates[each])]
        chosen = self._style or (existing[0] if existing else STYLES[0])
        sidecar = candidates[chosen]
        others = (candidates[each] for each in existing if candidates[each] != sidecar)
        shared = self._with_stem(image) if chosen == "adobe" else []
        return Place(sidecar, next(others, None), next(iter(shared), None))

    def image(self, sidecar: Path) -> Path:
        """The image of a sidecar; it may not exist.

        In Adobe's style several files may have the sidecar: the first that is named like an image.
        """
        named = sidecar.with_name(sidecar.stem)
        if sidecar.stem.lower().endswith(image_suffixes()) or os.path.lexists(named):
            return named
        same = self._with_stem(sidecar)
        images = [file for file in same if file.name.lower().endswith(image_suffixes())]
        return next(iter([*images, *same]), named)

    def _with_stem(self, file: Path) -> list[Path]:
        """The other files with the stem of a file, without sidecars, sorted."""
        if self._listed is None or self._listed[0] != file.parent:
            found: dict[str, list[str]] = {}
            for name in os.listdir(file.parent):
                found.setdefault(Path(name).stem, []).append(name)
            self._listed = (file.parent, found)
        names = sorted(self._listed[1].get(file.stem, ()))
        others = (name for name in names if name != file.name and not name.lower().endswith(".xmp"))
        return [file.with_name(name) for name in others]


def sidecars_below(folder: Path) -> Iterator[Path]:
    """All sidecars below a folder, sorted within each folder; hidden ones are left out."""
    for inside, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(".xmp") and not name.startswith("."):
                yield Path(inside, name)


def _sidecar(image: Path, style: Style) -> Path:
    lower = image.with_name(f"{image.name}.xmp") if style == "darktable" else _stem_sidecar(image)
    upper = lower.with_suffix(".XMP")
    return upper if os.path.lexists(upper) and not os.path.lexists(lower) else lower


def _stem_sidecar(image: Path) -> Path:
    return image.with_name(f"{image.stem}.xmp")
