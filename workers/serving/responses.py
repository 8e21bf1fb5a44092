"""The answers of the tagging service, which its OpenAPI description shows."""

from __future__ import annotations

from pydantic import BaseModel

from workers.serving.model import ArtifactState, Refusal, TaggedImage


class TagOut(BaseModel):
    """A label with its calibrated score in [0, 1]."""

    name: str
    score: float


class ImageOut(BaseModel):
    """An image's tags, best first; or the error, with the HTTP status for it."""

    name: str
    tags: list[TagOut]
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


class LabelOut(BaseModel):
    """A label, and the lowest score at which it is a tag."""

    name: str
    threshold: float


class ArtifactOut(BaseModel):
    """An artifact. `problem`: why the files in its folder now are not served."""

    name: str
    version: str | None = None
    labels: list[LabelOut]
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
    tags = [TagOut(name=tag.name, score=tag.score) for tag in result.tags]
    return ImageOut(name=name, tags=tags, version=result.version)


def artifact_out(name: str, state: ArtifactState) -> ArtifactOut:
    pairs = zip(state.labels, state.thresholds, strict=True)
    labels = [LabelOut(name=label, threshold=threshold) for label, threshold in pairs]
    return ArtifactOut(name=name, version=state.version, labels=labels, problem=state.problem)
