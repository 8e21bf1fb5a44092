"""Opening images of any source as people see them, within limits; each error has a reason."""

from __future__ import annotations

import io
import re
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from prompt_tuning.install_hints import pip_install

MAX_PIXELS = 100_000_000
# Others that Pillow reads are hardly photos; EPS would start Ghostscript, and an ICO is decoded
# before its size is known.
FORMATS = tuple("AVIF BMP DIB GIF JPEG JPEG2000 PNG PPM TGA TIFF WEBP".split())
_HEIF_SUFFIXES = (".heic", ".heif", ".hif")
_HEIF_BRANDS = tuple(b"ftyp" + kind for kind in b"heic heix heim heis hevc hevx mif1 msf1".split())
_TIFF_BITS, _TIFF_SAMPLES, _TIFF_SIGNED = 258, 339, 2
# Possible values of white where the format does not define it.
_WHITES = (255.0, 4095.0, 65535.0, 2.0**31 - 1, 2.0**32 - 1)


class UnknownFormatError(ValueError):
    """Not an image of a known format, or one whose beginning is damaged."""


class TooManyPixelsError(ValueError):
    """An image that would take more memory than an image may."""


def open_image(file: Path) -> Image.Image:
    """An image as RGB (see `as_rgb`), turned as its EXIF says; of an animation the first frame.

    Raises:
        ValueError: naming the file, if it is missing, not an image, truncated or too large.
    """
    try:
        if file.is_fifo():  # opening it would wait for its writer
            raise ValueError("cannot be read as an image (a pipe)")
        return _decoded(file, MAX_PIXELS)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    except OSError as error:  # a folder that may not be read, a name that is too long
        raise ValueError(f"{file}: cannot be read as an image ({error.strerror})") from None


def read_image(data: bytes, max_pixels: int) -> Image.Image:
    """As `open_image`, from a file's content.

    Raises:
        UnknownFormatError: if it is not an image.
        TooManyPixelsError: if it has more than `max_pixels`.
        ValueError: if it is truncated or damaged.
    """
    return _decoded(io.BytesIO(data), max_pixels)


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as people see it: on white where it is transparent, with 8 bits.

    Shades of 16 bits are scaled by the range of their format. Shades of 32 bits seldom fill theirs:
    white is the smallest of 1 (floats), 255, 4,095, 65,535, 2³¹-1 and 2³²-1 that holds them all.
    """
    return _as_rgb(image, _white(image))


def _as_rgb(image: Image.Image, white: float | None) -> Image.Image:
    if white is not None:
        image = _with_8_bits(image, white)
    if image.has_transparency_data:
        # Pillow takes La to LA only.
        opaque = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque)
    return image.convert("RGB")


def _white(image: Image.Image) -> float | None:
    """The value of white for shades of more than 8 bits, else None."""
    if image.mode == "F":
        shades = np.asarray(image)
        most = float(shades.max(where=np.isfinite(shades), initial=0))
        # Floats may overshoot white a little.
        return next((white for white in (1.0, *_WHITES[:-1]) if most < 2 * white), most)
    if image.mode.startswith("I"):
        tags = getattr(image, "tag_v2", {})
        made_here = image.mode == "I" and image.format is None
        (bits, *_), (kind, *_) = tags.get(_TIFF_BITS, (16,)), tags.get(_TIFF_SAMPLES, (1,))
        signed = made_here or kind == _TIFF_SIGNED
        if bits <= 16 and not made_here:
            return float(2 ** (bits - signed) - 1)
        shades = np.asarray(image)
        most = float((shades if signed else shades.view(np.uint32)).max())
        return next(white for white in _WHITES if most <= white)
    return None


def _with_8_bits(image: Image.Image, white: float) -> Image.Image:
    """Shades as grey of 8 bits; a transparent shade stays transparent."""
    shades = np.asarray(image)
    if white == 2**32 - 1:
        shades = shades.view(np.uint32)  # Pillow has only signed ones
    scaled = shades.astype(np.float32) * (255 / white)
    scaled = np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255)
    grey = Image.fromarray(scaled.round().astype(np.uint8))
    if isinstance(hidden := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(shades == hidden, 0, 255).astype(np.uint8)))
    return grey


@cache
def readable_formats() -> dict[str, str]:
    """Pillow's names of the readable formats, with the version of the package that reads them."""
    formats = dict.fromkeys(FORMATS, PIL.__version__)
    try:
        import pillow_heif
    except ImportError:
        return formats
    pillow_heif.register_heif_opener()
    return {**formats, "HEIF": pillow_heif.__version__}


def _decoded(source: Path | io.BytesIO, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is below
            image = Image.open(source, formats=tuple(readable_formats()))
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise TooManyPixelsError(f"{width} × {height} pixels; {max_pixels:,} are the most")
            return _as_rgb(ImageOps.exif_transpose(image), _white(image))
    except TooManyPixelsError:
        raise
    except Image.DecompressionBombError:
        raise TooManyPixelsError(f"too many pixels; {max_pixels:,} are the most") from None
    except UnidentifiedImageError:
        raise UnknownFormatError(
            f"cannot be read as an image ({_content_kind(_beginning(source))})"
        ) from None
    except Exception as error:  # Pillow raises anything for broken files
        reason = getattr(error, "strerror", None) or error  # without the path
        raise ValueError(f"cannot be read as an image ({reason})") from None


def _beginning(source: Path | io.BytesIO) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()[:1024]
    with source.open("rb") as stream:
        return stream.read(1024)


def _content_kind(beginning: bytes) -> str:
    """The kind of an unreadable file, with advice if there is any."""
    if beginning[4:].startswith(_HEIF_BRANDS) and "HEIF" not in readable_formats():
        return f"a HEIC image, which pillow-heif reads: {pip_install('pillow-heif')}"
    if b"%PDF-" in beginning:
        return "a PDF document: save its pages as PNG or JPEG"
    if re.search(b"<svg|<!doctype svg", beginning, re.I) and b"<html" not in beginning.lower():
        return "an SVG drawing, which has no pixels: export it as PNG"
    return "not of a known format, or damaged"


def small_jpeg(file: Path, side: int) -> bytes:
    """An image for a page, no side longer than `side`. Raises ValueError as `open_image`."""
    small = open_image(file)
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()


@cache
def image_suffixes() -> tuple[str, ...]:
    """The suffixes of images, lower case, with the dot.

    They include HEIC's even if it cannot be read: each such file then gets an error with advice.
    """
    known = Image.registered_extensions().items()
    return (*(end for end, kind in known if kind in FORMATS), *_HEIF_SUFFIXES)
