"""The answers of the tagging service, which its OpenAPI description shows."""

from __future__ import annotations

from pydantic import BaseModel

from prompt_tuning.tagging.tagger import Tag
from workers.serving.model import Label, Refusal, TaggedImage


class ImageOut(BaseModel):
    """An image's tags, best first; or the error, with the HTTP status for it."""

    name: str
    tags: list[Tag]
    version: str | None = None
    error: str | None = None
    status: int | None = None


class TagsOut(BaseModel):
    """The images of a request, in order.

    `version` is the artifact's version for the first tagged image. While an artifact is replaced,
    other images may have another version, which they give themselves.
    """

    artifact: str
    version: str
    images: list[ImageOut]


class RegionsOut(BaseModel):
    """For each label, a grid of shares that covers the whole image; they add up to 1."""

    artifact: str
    version: str
    regions: dict[str, list[list[float]]]


class ArtifactOut(BaseModel):
    """An artifact. `problem`: why the files in its folder now are not served."""

    name: str
    version: str | None = None
    labels: list[Label]
    problem: str | None = None


class LabelsOut(BaseModel):
    """The artifacts that are served."""

    artifacts: list[ArtifactOut]


class HealthOut(BaseModel):
    """Versions by artifact, and the problems of artifacts whose files now are not served.

    `status`: ok; outdated, while artifacts have problems and earlier versions are served; or, with
    503, unavailable or ending.
    """

    status: str
    artifacts: dict[str, str] = {}
    problems: dict[str, str] = {}


class ErrorOut(BaseModel):
    """What is wrong, in one sentence."""

    error: str


def image_out(name: str, result: TaggedImage | Refusal) -> ImageOut:
    if isinstance(result, Refusal):
        return ImageOut(name=name, tags=[], error=result.reason, status=result.status)
    return ImageOut(name=name, tags=result.tags, version=result.version)
