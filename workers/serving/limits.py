"""The limits of the tagging service."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What the service accepts. It refuses anything above with this status and one sentence."""

    request_bytes: int = 100_000_000  # body of a request: 413
    all_bytes: int = 1_000_000_000  # bodies of all requests under way: 429
    image_bytes: int = 20_000_000  # file of an image: 413
    pixels: int = 50_000_000  # width × height of an image: 413
    images: int = 32  # images in a request: 413
    waiting: int = 128  # images of all requests under way: 429
    seconds: float = 60  # to receive a request, and then to answer it: 504
