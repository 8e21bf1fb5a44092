"""The requests of the review page: its state, the next image, an answer, an improvement."""

from __future__ import annotations

import asyncio
from typing import Annotated, NoReturn, TypeVar

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prompt_tuning.datasets.review_answers import Answer
from prompt_tuning.images import small_jpeg
from workers.serving.bodies import Bodies
from workers.serving.requests import first_error, refuse
from workers.serving.review.progress import ReviewWork
from workers.serving.review.session import ReviewSession
from workers.serving.same_origin import require_own_page

_SIDE = 1280  # pixels of an image on the page
_DECODED_AT_ONCE = 2  # an image may have 100 megapixels
_BODY_BYTES = 4_000_000  # the ids of 200,000 seen images

ImageId = Annotated[str, Field(max_length=16)]
IdInPath = Annotated[str, Path(max_length=16)]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SeenIn(_In):
    """Images that a page has shown already."""

    seen: list[ImageId] = []


class AnswerIn(_In):
    """Whether an image shows a label; null takes answers back."""

    image: ImageId
    label: Annotated[str, Field(max_length=80)]
    answer: Answer | None


class ImproveIn(_In):
    """Nothing to say."""


class RowOut(BaseModel):
    """A label of an image; `score` and `answer` where there are any."""

    label: str
    score: float | None
    is_tag: bool
    answer: Answer | None


class ItemOut(BaseModel):
    """An image and its labels; the first `questions` rows are asked about.

    `version`: of the artifact that gave the scores. `problem`: why the image cannot be read.
    """

    image: str
    file: str
    version: str | None
    problem: str | None
    questions: int
    rows: list[RowOut]


class NextOut(BaseModel):
    """The next image, unless nothing is left to ask."""

    item: ItemOut | None


class LabelAnswersOut(BaseModel):
    """How many answers of yes and of no a label has."""

    label: str
    yes: int
    no: int


class AgreementOut(BaseModel):
    """How many answers agreed with the tags of a version, which had not learned from them."""

    version: str
    answers: int
    agreed: int


class StateOut(BaseModel):
    """What has been answered and gained; `scored`: images with scores of `version`.

    `improving` and `scoring`: what is under way. After an improvement, `lines` says what it gained
    and `seconds` how long it took, with the scores of all images; or `error` why there is none.
    """

    images: int
    answered_images: int
    unreadable_images: int
    answers: int
    labels: list[LabelAnswersOut]
    agreement: list[AgreementOut]
    version: str | None
    scored: int
    scoring: bool
    improving: bool
    lines: list[str]
    error: str | None
    seconds: float | None


class SavedOut(BaseModel):
    """An answer is on disk; `earlier`: the one before it."""

    earlier: Answer | None
    answers: int
    answered_images: int


def review_routes(session: ReviewSession, work: ReviewWork, bodies: Bodies) -> APIRouter:
    """The routes below `/review`, all refused to pages of other sites."""
    router = APIRouter(prefix="/review", dependencies=[Depends(require_own_page)])
    decoding = asyncio.Semaphore(_DECODED_AT_ONCE)
    saving = asyncio.Lock()

    @router.get("/state", summary="Answers so far, and what they gained")
    async def state() -> StateOut:
        labels = [LabelAnswersOut(label=la, yes=y, no=n) for la, y, n in session.answers_by_label()]
        return StateOut(
            images=len(session.files),
            answered_images=session.images_answered(),
            unreadable_images=session.unreadable(),
            answers=sum(one.yes + one.no for one in labels),
            labels=labels,
            agreement=[AgreementOut(**one._asdict()) for one in session.agreements()],
            version=work.version,
            scored=session.scored(work.version),
            scoring=work.scoring,
            improving=work.improving,
            lines=work.lines,
            error=work.error,
            seconds=work.seconds,
        )

    @router.post("/next", summary="The image where answers teach most")
    async def next_image(request: Request) -> NextOut:
        given = await _body(bodies, request, SeenIn)
        image = await asyncio.to_thread(session.next_image, given.seen)
        return NextOut(item=None if image is None else _item(session, image))

    @router.get("/items/{image}", summary="An image's labels with scores and answers")
    async def item(image: IdInPath) -> ItemOut:
        return _item(session, image)

    @router.get("/images/{image}", summary="An image as JPEG", response_class=Response)
    async def image(image: IdInPath) -> Response:
        try:
            file = session.file(image)
        except KeyError:
            _unknown_image(image)
        async with decoding:
            try:
                content = await asyncio.to_thread(small_jpeg, file, _SIDE)
            except ValueError as error:
                refuse(422, str(error).removeprefix(f"{file}: "))
        headers = {
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
        }
        return Response(content, media_type="image/jpeg", headers=headers)

    @router.post("/answers", summary="Save an answer")
    async def answer(request: Request) -> SavedOut:
        given = await _body(bodies, request, AnswerIn)
        async with saving:
            try:
                earlier = await asyncio.to_thread(
                    session.answer, given.image, given.label, given.answer
                )
            except KeyError as error:
                if error.args[0] == given.image:
                    _unknown_image(given.image)
                refuse(422, f"{given.label} is not a label of this artifact")
            except OSError as error:
                refuse(507, f"the answer cannot be saved ({error.strerror})")
        counts = session.answers_by_label()
        return SavedOut(
            earlier=earlier,
            answers=sum(yes + no for _, yes, no in counts),
            answered_images=session.images_answered(),
        )

    @router.post("/improve", summary="Adapt the artifact to the answers", status_code=202)
    async def improve(request: Request) -> dict[str, bool]:
        await _body(bodies, request, ImproveIn)
        if work.improving:
            refuse(409, "the artifact is being improved already")
        work.improve()
        return {"improving": True}

    return router


def _item(session: ReviewSession, image: str) -> ItemOut:
    try:
        item = session.item(image)
    except KeyError:
        _unknown_image(image)
    rows = [RowOut(**row._asdict()) for row in item.rows]
    return ItemOut(**item._asdict() | {"rows": rows})


def _unknown_image(image: str) -> NoReturn:
    refuse(404, f"{image} is not an image of this review; reload the page")


Body = TypeVar("Body", bound=_In)


async def _body(bodies: Bodies, request: Request, kind: type[Body]) -> Body:
    """The JSON body of a request. Raises HTTPException: 408, 413, 422, 429."""
    async with bodies.admitted(request, _BODY_BYTES) as body:
        content = await body.read(Request.body)
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        refuse(422, first_error(error.errors(include_input=False)))
