"""A replica of the service that loses its device with an image that names an existing file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from PIL.Image import Image

from workers.serving.deployment import _Model
from workers.serving.model import Refusal

Result = TypeVar("Result")
LOSE = b"lose the device "
LOADED = "DATAFREE_TEST_LOADED"  # the folder with an empty file for each process with a model


class LosingModel(_Model):
    """Loses its device once for each file, which it removes."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if folder := os.environ.get(LOADED):  # not on nodes that a test started before
            Path(folder, str(os.getpid())).touch()

    def _decoded(self, image: bytes, use: Callable[[Image], Result]) -> Result | Refusal:
        if image.startswith(LOSE):
            try:
                Path(image.removeprefix(LOSE).decode()).unlink()
            except FileNotFoundError:
                pass
            else:
                raise RuntimeError("CUDA error: device-side assert triggered\nmore lines")
        return super()._decoded(image, use)
