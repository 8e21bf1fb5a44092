"""The answers of the tagging service, as its OpenAPI description has them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from workers.serving.model import ArtifactState, Refusal


class TagOut(BaseModel):
    """A label with its calibrated score in [0, 1]."""

    name: str
    score: float


class ImageOut(BaseModel):
    """An image's tags, best first; or why it has none, and the status that says so."""

    name: str
    tags: list[TagOut]
    version: str | None = None
    error: str | None = None
    status: int | None = None


class TagsOut(BaseModel):
    """The images of a request, in order; `version`: of the artifact, as of the first one tagged.

    While an artifact is taken anew, others may have another one, which they say themselves.
    """

    artifact: str
    version: str
    images: list[ImageOut]


class RegionsOut(BaseModel):
    """For each label rows of shares, which add up to 1 and cover the whole image."""

    artifact: str
    version: str
    regions: dict[str, list[list[float]]]


class LabelOut(BaseModel):
    """A label; from `threshold` on it is a tag."""

    name: str
    threshold: float


class ArtifactOut(BaseModel):
    """An artifact; `problem`: why what lies in its folder now is not served."""

    name: str
    version: str | None = None
    labels: list[LabelOut]
    problem: str | None = None


class LabelsOut(BaseModel):
    """What is served."""

    artifacts: list[ArtifactOut]


class HealthOut(BaseModel):
    """Versions by artifact, and by artifact why what lies in its folder now is not served.

    `status`: ok, outdated (there are problems; the versions before are served), or with 503
    unavailable or ending.
    """

    status: str
    artifacts: dict[str, str] = {}
    problems: dict[str, str] = {}


class ErrorOut(BaseModel):
    """What is wrong, in one sentence."""

    error: str


def image_out(name: str, result: Any) -> ImageOut:
    if isinstance(result, Refusal):
        return ImageOut(name=name, tags=[], error=result.reason, status=result.status)
    tags = [TagOut(name=tag.name, score=tag.score) for tag in result.tags]
    return ImageOut(name=name, tags=tags, version=result.version)


def artifact_out(name: str, of: ArtifactState) -> ArtifactOut:
    labels = [
        LabelOut(name=label, threshold=threshold)
        for label, threshold in zip(of.labels, of.thresholds, strict=True)
    ]
    return ArtifactOut(name=name, version=of.version, labels=labels, problem=of.problem)
