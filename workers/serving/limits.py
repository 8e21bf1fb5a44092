"""The limits of the tagging service, which a YAML file may set (`datafree serve --limits`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Limits(BaseModel):
    """What the service accepts. It refuses anything above with this status and one sentence."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    request_bytes: Count = 100_000_000  # body of a request: 413
    all_bytes: Count = 150_000_000  # bodies of all requests under way: 429
    image_bytes: Count = 20_000_000  # file of an image: 413
    pixels: Count = 50_000_000  # width × height of an image: 413
    images: Count = 32  # images in a request: 413
    waiting: Count = 128  # images of all requests under way: 429
    connections: Count = 1000  # connections at once: 503
    receive_seconds: Seconds = 60  # to receive a request: 408
    # Slower senders are cut off with 408 when others need their room, and so are those that are too
    # slow to send their room within `receive_seconds`.
    slowest_bytes_s: Annotated[int, Field(ge=0)] = 30_000
    seconds: Seconds = 60  # to answer a request that was received: 504

    @model_validator(mode="after")
    def _one_request_fits(self) -> Limits:
        if self.all_bytes < self.request_bytes:
            raise ValueError(
                f"all_bytes must be at least request_bytes, {self.request_bytes} "
                f"(got {self.all_bytes})"
            )
        return self
