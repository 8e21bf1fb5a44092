"""The limits of the tagging service."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What the service accepts; it answers anything above with an error of one sentence.

    Attributes:
        request_bytes: body of a request (413).
        all_bytes: bodies of all requests under way (429).
        image_bytes: file of an image (413).
        pixels: width × height of an image (413).
        images: images in a request (413).
        waiting: images of all requests under way (429).
        seconds: time to send a request, and then to answer it (504).
    """

    request_bytes: int = 100_000_000
    all_bytes: int = 1_000_000_000
    image_bytes: int = 20_000_000
    pixels: int = 50_000_000
    images: int = 32
    waiting: int = 128
    seconds: float = 60
