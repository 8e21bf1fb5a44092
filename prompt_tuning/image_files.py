"""Opening image files that people have: named in every error, upright, and not beyond limits."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
# Others that Pillow reads are hardly photos, and EPS would start Ghostscript.
FORMATS = tuple("AVIF BMP DIB GIF ICO JPEG JPEG2000 PNG PPM TGA TIFF WEBP".split())


def open_image(file: Path) -> Image.Image:
    """A picture as RGB, turned as its EXIF says; of an animation the first frame.

    Raises:
        ValueError: naming the file, when it is missing, no image, truncated or too large.
    """
    check_image(file)
    try:
        with Image.open(file, formats=FORMATS) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits; Pillow would make all above 255 white
                shades = np.asarray(upright).astype(np.int64) >> 8
                upright = Image.fromarray(shades.clip(0, 255).astype(np.uint8))
            return upright.convert("RGB")
    except Exception as error:  # Pillow raises whatever a broken file makes it stumble over
        raise _unreadable(file, error) from None


def check_image(file: Path) -> None:
    """Look at the header only. Raises ValueError as `open_image` does."""
    try:
        if file.is_fifo():  # opening it would wait for its writer
            raise ValueError("a pipe")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is below
            with Image.open(file, formats=FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise ValueError(f"{file}: too many pixels; {MAX_PIXELS:,} are the most") from None
    except Exception as error:  # as above
        raise _unreadable(file, error) from None
    if width * height > MAX_PIXELS:
        raise ValueError(f"{file}: {width} × {height} pixels; {MAX_PIXELS:,} are the most")


def small_jpeg(file: Path, side: int) -> bytes:
    """A picture as a page shows it, no side longer than this. Raises ValueError as above."""
    small = open_image(file)
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def picture_suffixes() -> tuple[str, ...]:
    """What the names of pictures end in, lower case, with the dot."""
    return tuple(end for end, kind in Image.registered_extensions().items() if kind in FORMATS)


def _unreadable(file: Path, error: Exception) -> ValueError:
    reason = getattr(error, "strerror", None) or error  # without the path, which is told already
    if isinstance(error, UnidentifiedImageError):
        reason = "not of a known format, or damaged"
    return ValueError(f"{file}: cannot be read as an image ({reason})")
