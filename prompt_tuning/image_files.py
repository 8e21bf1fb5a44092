"""Opening pictures that people have: every error says why, upright, and not beyond limits."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
# Others that Pillow reads are hardly photos; EPS would start Ghostscript, and an ICO is decoded
# before its size is known.
FORMATS = tuple("AVIF BMP DIB GIF JPEG JPEG2000 PNG PPM TGA TIFF WEBP".split())


class UnknownFormatError(ValueError):
    """No picture of a known format, or one whose beginning is damaged."""


class TooManyPixelsError(ValueError):
    """A picture that would take more memory than a picture may."""


def open_image(file: Path) -> Image.Image:
    """A picture as RGB, turned as its EXIF says; of an animation the first frame.

    Raises:
        ValueError: naming the file, when it is missing, no image, truncated or too large.
    """
    try:
        if file.is_fifo():  # opening it would wait for its writer
            raise ValueError("cannot be read as an image (a pipe)")
        return _decoded(file, MAX_PIXELS)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def read_image(data: bytes, max_pixels: int) -> Image.Image:
    """As `open_image`, of a file's content.

    Raises:
        UnknownFormatError: when it is no picture.
        TooManyPixelsError: when it has more than these.
        ValueError: when it is truncated or damaged.
    """
    return _decoded(io.BytesIO(data), max_pixels)


def _decoded(source: Path | io.BytesIO, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is below
            image = Image.open(source, formats=FORMATS)
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise TooManyPixelsError(f"{width} × {height} pixels; {max_pixels:,} are the most")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits; Pillow would make all above 255 white
                shades = np.asarray(upright) >> 8
                upright = Image.fromarray(shades.clip(0, 255).astype(np.uint8))
            return upright.convert("RGB")
    except TooManyPixelsError:
        raise
    except Image.DecompressionBombError:
        raise TooManyPixelsError(f"too many pixels; {max_pixels:,} are the most") from None
    except UnidentifiedImageError:
        raise UnknownFormatError(
            "cannot be read as an image (not of a known format, or damaged)"
        ) from None
    except Exception as error:  # Pillow raises whatever a broken file makes it stumble over
        reason = getattr(error, "strerror", None) or error  # without the path
        raise ValueError(f"cannot be read as an image ({reason})") from None


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
