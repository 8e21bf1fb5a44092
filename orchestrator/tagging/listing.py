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

    Arguments come in their order; what is below a folder, and what matches a pattern, is sorted. Of
    a folder everything is taken that is named like an image, at any depth; hidden names and
    links to folders are passed over. A file that is named itself is taken whatever its name is.
    In memory is the list of one folder (and of those above it), never that of all images.
    """

    def __init__(self, names: list[str]) -> None:
        """Raises InputError for a name that stands for nothing."""
        for name in names:
            if not os.path.lexists(name) and not glob(name, recursive=True):
                raise InputError(f"{name}: no such file or folder, and no pattern that matches any")
        self._names = names
        self._suffixes = image_suffixes()
        self.passed_over = 0
        self.passed_over_example = ""

    def __iter__(self) -> Iterator[Path]:
        self.passed_over = 0
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
            yield Path(folder)  # and reading it will tell why not
            return
        for name in names:
            path = os.path.join(folder, name)
            hidden, is_folder = name.startswith("."), os.path.isdir(path)
            if is_folder and not hidden and not os.path.islink(path):
                yield from self._below(path)
            elif is_folder or hidden or not name.lower().endswith(self._suffixes):
                self.passed_over += 1
                self.passed_over_example = self.passed_over_example or path
            else:
                yield Path(path)
