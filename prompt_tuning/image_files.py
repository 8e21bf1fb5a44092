"""Opening image files that people have: named in every error, upright, and not beyond limits."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, ImageOps

MAX_PIXELS = 100_000_000


def open_image(file: Path) -> Image.Image:
    """A picture as RGB, turned as its EXIF says.

    Raises:
        ValueError: naming the file, when it is missing, no image, truncated or too large.
    """
    check_image(file)
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow raises whatever a broken file makes it stumble over
        raise ValueError(f"{file}: cannot be read as an image ({error})") from None


def check_image(file: Path) -> None:
    """Look at the header only. Raises ValueError as `open_image` does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is below
            with Image.open(file) as image:
                width, height = image.size
    except Exception as error:  # as above
        raise ValueError(f"{file}: cannot be read as an image ({error})") from None
    if width * height > MAX_PIXELS:
        raise ValueError(f"{file}: {width} × {height} pixels; {MAX_PIXELS:,} are the most")
