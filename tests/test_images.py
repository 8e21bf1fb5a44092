"""Images as people see them, from files of every depth; and what says why a file is not one."""

from __future__ import annotations

import io
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from prompt_tuning.backbones.base import VLM
from prompt_tuning.images import (
    FORMATS,
    UnknownFormatError,
    as_rgb,
    image_suffixes,
    open_image,
    read_image,
    readable_formats,
)
from prompt_tuning.install_hints import pip_install

RAMP = np.linspace(0, 1, 256).reshape(16, 16)
PHOTO = Image.fromarray((np.random.default_rng(0).random((16, 16, 3)) * 255).astype(np.uint8))


def content(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(data: bytes) -> np.ndarray:
    """Of a file's content, `(height, width, 3)`."""
    return np.asarray(read_image(data, 100_000)).astype(int)


def transparent(mode: str) -> Image.Image:
    """A photo of which nothing is to be seen."""
    hidden = PHOTO.convert("RGBA")
    hidden.putalpha(0)
    return hidden.convert(mode)


@pytest.mark.parametrize(
    "data",
    [
        content(transparent("RGBA"), "PNG"),
        content(transparent("LA"), "PNG"),
        content(transparent("RGBA"), "WEBP", lossless=True, exact=True),
        content(transparent("RGBA"), "TIFF"),
        content(PHOTO.convert("P"), "PNG", transparency=bytes(256)),
        content(Image.new("P", (16, 16), 3), "GIF", transparency=3),
        content(Image.new("RGB", (16, 16), (9, 8, 7)), "PNG", transparency=(9, 8, 7)),
        content(Image.new("L", (16, 16), 9), "PNG", transparency=9),
        content(Image.fromarray(np.full((16, 16), 9, np.uint16)), "PNG", transparency=9),
    ],
    ids="rgba la webp tiff palette gif rgb-key grey-key deep-key".split(),
)
def test_what_nobody_sees_is_white(data: bytes) -> None:
    assert (pixels(data) == 255).all()


def test_what_is_half_transparent_is_half_white(embedded_vlm: VLM) -> None:
    image = Image.new("RGBA", (16, 16), (0, 100, 200, 128))
    assert np.abs(pixels(content(image, "PNG")) - [127, 177, 227]).max() <= 1
    # An image that a notebook has opened itself, too.
    opaque = Image.new("RGB", (16, 16), as_rgb(image).getpixel((0, 0)))
    assert (embedded_vlm.preprocess(image) == embedded_vlm.preprocess(opaque)).all()
    assert np.array_equal(as_rgb(PHOTO), PHOTO)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("TIFF", RAMP.astype(np.float32)),
        ("TIFF", (RAMP * 1.3).astype(np.float32)),  # overexposed
        ("TIFF", (RAMP * 255).astype(np.float32)),
        ("TIFF", (RAMP * 65535).astype(np.float32)),
        ("TIFF", (RAMP * 4095).astype(np.float32)),
        ("TIFF", (RAMP * 65535).astype(np.uint16)),
        ("TIFF", (RAMP * 255).astype(np.int32)),
        ("TIFF", (RAMP * 4095).astype(np.int32)),
        ("TIFF", (RAMP * (2**31 - 1)).astype(np.int32)),
        ("PNG", (RAMP * 65535).astype(np.uint16)),
        ("PPM", (RAMP * 65535).astype(np.int32)),
        ("JPEG2000", (RAMP * 65535).astype(np.uint16)),
    ],
    ids="""
    float01 overexposed float255 float65535 float4095 16-bit 32-as-8 32-as-12 32-bit png ppm
    jpeg2000
    """.split(),
)
def test_deep_shades_are_scaled_by_their_range(kind: str, values: np.ndarray) -> None:
    over = 1.3 if values.max() == np.float32(1.3) else 1
    wanted = np.clip(RAMP * over * 255, 0, 255)
    assert np.abs(pixels(content(Image.fromarray(values), kind))[..., 0] - wanted).max() <= 1
    # What a notebook has made itself, too.
    assert np.abs(np.asarray(as_rgb(Image.fromarray(values)))[..., 0] - wanted).max() <= 1


def test_dark_images_of_16_bits_stay_dark() -> None:
    values = (RAMP * 255).astype(np.uint16)
    for kind, shades in (("TIFF", values), ("PNG", values), ("PPM", values.astype(np.int32))):
        assert pixels(content(Image.fromarray(shades), kind)).max() == 1


def test_unsigned_32_bits_and_no_numbers() -> None:
    bits = (RAMP * (2**32 - 1)).astype(np.uint32).view(np.int32)
    data = content(Image.fromarray(bits), "TIFF")
    # The tag of the kind of samples, from signed to unsigned.
    kind = b"\x53\x01\x03\x00\x01\x00\x00\x00"
    unsigned = data.replace(kind + b"\2", kind + b"\1")
    assert unsigned != data
    assert np.abs(pixels(unsigned)[..., 0] - RAMP * 255).max() <= 1
    holes = RAMP.astype(np.float32)
    holes[0, :3] = np.nan, np.inf, -np.inf
    shades = pixels(content(Image.fromarray(holes), "TIFF"))[..., 0]
    assert shades[0, :3].tolist() == [0, 255, 0]
    assert shades[-1, -1] == 255


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(300), re.escape(pip_install("pillow-heif")) + r"\)$"),
        (b"\0\0\0\x18ftypmif1" + bytes(300), "a HEIC image"),
        (b"%PDF-1.7\n%abc", "a PDF document: save its pages as PNG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg xmlns="x"/>', "an SVG drawing, .*export it"),
        (b"<?xml?><!DOCTYPE svg [" + bytes(2000) + b"]><svg/>", "an SVG drawing"),
        (b"<HTML><svg></svg></HTML>", "not of a known format"),
        (b"", "not of a known format"),
    ],
)
def test_what_is_no_image_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, reason: str
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    readable_formats.cache_clear()
    try:
        with pytest.raises(UnknownFormatError, match=reason):
            read_image(data, 100)
        (tmp_path / "a.heic").write_bytes(data)
        with pytest.raises(ValueError, match=reason):
            open_image(tmp_path / "a.heic")
    finally:
        readable_formats.cache_clear()


def test_each_format_has_the_version_of_what_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    heif = types.SimpleNamespace(register_heif_opener=lambda: None, __version__="9.8")
    monkeypatch.setitem(sys.modules, "pillow_heif", heif)
    readable_formats.cache_clear()
    try:
        assert readable_formats() == {**dict.fromkeys(FORMATS, PIL.__version__), "HEIF": "9.8"}
    finally:
        readable_formats.cache_clear()


def test_heic_is_read_where_its_library_is_installed() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    grey = Image.linear_gradient("L").convert("RGB")
    pillow_heif.from_pillow(grey).save(stream)
    assert np.abs(pixels(stream.getvalue()) - np.asarray(grey)).max() < 10
    with pytest.raises(ValueError, match="cannot be read") as raised:
        read_image(stream.getvalue()[:60], 10_000)
    assert "pip install" not in str(raised.value)


def test_a_name_that_is_too_long_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read as an image \(File name too long\)"):
        open_image(tmp_path / ("long" * 99 + ".jpg"))


def test_folders_of_heic_are_no_empty_ones() -> None:
    assert {".heic", ".heif", ".jpg", ".tif"} <= set(image_suffixes())
    assert not {".pdf", ".svg"} & set(image_suffixes())
