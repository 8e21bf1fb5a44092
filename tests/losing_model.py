"""A replica of the service that loses its device with an image that names an existing file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from PIL.Image import Image

from workers.serving.deployment import _Model
from workers.serving.model import Refusal

Result = TypeVar("Result")
LOSE = b"lose the device "


class LosingModel(_Model):
    """Loses its device once for each file, which it removes."""

    def _decoded(self, image: bytes, use: Callable[[Image], Result]) -> Result | Refusal:
        if image.startswith(LOSE):
            try:
                Path(image.removeprefix(LOSE).decode()).unlink()
            except FileNotFoundError:
                pass
            else:
                raise RuntimeError("CUDA error: device-side assert triggered\nmore lines")
        return super()._decoded(image, use)
