"""The images that a person names: files, folders and patterns, as a stream in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from glob import glob
from pathlib import Path

from orchestrator.errors import InputError
from prompt_tuning.images import image_suffixes


class ImageListing:
    """Iterates over images, the same ones in the same order each time.

    Names keep their order; the files below a folder and the matches of a pattern are sorted.
    Folders are searched at any depth for files that are named like images; hidden files, and links
    to folders, are skipped. A file given by name may have any name. Memory holds the list of one
    folder (and of those above it), never the list of all images.
    """

    def __init__(self, names: list[str]) -> None:
        """Raises InputError for a name that matches nothing."""
        for name in names:
            if not os.path.lexists(name) and not glob(name, recursive=True):
                raise InputError(f"{name}: no such file or folder, and no pattern with a match")
        self._names = names
        self._suffixes = image_suffixes()
        self.skipped = 0
        self.skipped_example = ""

    def __iter__(self) -> Iterator[Path]:
        self.skipped = 0
        for name in self._names:
            for path in [name] if os.path.lexists(name) else sorted(glob(name, recursive=True)):
                if os.path.isdir(path):
                    yield from self._below(path)
                else:
                    yield Path(path)

    def _below(self, folder: str) -> Iterator[Path]:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            yield Path(folder)  # reading it as an image gives the reason
            return
        for name in names:
            path = os.path.join(folder, name)
            hidden, is_folder = name.startswith("."), os.path.isdir(path)
            if is_folder and not hidden and not os.path.islink(path):
                yield from self._below(path)
            elif name.lower().endswith(".xmp") and not is_folder:
                pass  # a sidecar belongs to its image
            elif is_folder or hidden or not name.lower().endswith(self._suffixes):
                self.skipped += 1
                self.skipped_example = self.skipped_example or path
            else:
                yield Path(path)
