"""The HTTP service of `datafree serve`: a FastAPI app in front of the models.

It reads requests, enforces limits, and sends images to `TaggingModel` one by one, so that images of
different requests share batches.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from prompt_tuning.tagging.tag_stream import TagRule
from workers.serving.bodies import Bodies
from workers.serving.client import ModelCalls
from workers.serving.limits import Limits
from workers.serving.metrics import Metrics
from workers.serving.model import Refusal
from workers.serving.requests import body_schema, check_query, first_error, read_images, refuse
from workers.serving.responses import (
    ArtifactOut,
    ErrorOut,
    HealthOut,
    LabelsOut,
    RegionsOut,
    TagsOut,
    image_out,
)
from workers.serving.review.progress import ReviewWork
from workers.serving.review.routes import review_routes
from workers.serving.review.session import ReviewFolder, ReviewSession
from workers.serving.same_origin import refuse_foreign_posts
from workers.serving.traffic import LIVE, Traffic, request_id

_REFUSALS = (400, 401, 403, 408, 413, 415, 422, 429, 503, 504)

_CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

ArtifactName = Annotated[
    str | None, Query(description="name of the artifact; required when there are several")
]


def build_app(
    handle: DeploymentHandle,
    artifacts: list[str],
    pages: dict[str, str],
    token: str | None,
    hosts: list[str],
    limits: Limits,
    review: ReviewFolder | None = None,
) -> Traffic:
    """The app. `handle`: the deployment of `TaggingModel`; `pages`: HTML by path.

    `token` is required for all but the pages, the state in `/health` and the description of the
    API. `hosts`: host names that requests may use; refusing others prevents DNS rebinding.
    `review`: a folder whose images are reviewed, with the only artifact.
    """
    counts, bodies = Metrics(), Bodies(limits)
    models = ModelCalls(handle, limits, counts)
    session = ReviewSession(review) if review else None
    work = ReviewWork(review, session, models, artifacts[0]) if review and session else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if work:
            work.start()
        yield

    app = FastAPI(
        lifespan=lifespan,
        title="datafree",
        description="Tags images with prompts that were tuned on text alone.",
        docs_url=None,  # both pages load code from other servers
        redoc_url=None,
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)

    @app.exception_handler(StarletteHTTPException)
    async def http_error(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": first_error(error.errors(), skip=1)}, 422)

    @app.exception_handler(Exception)
    async def internal_error(_: Request, error: Exception) -> JSONResponse:
        sentence = f"internal error; the service's log has it as {request_id.get()}"
        return JSONResponse({"error": sentence}, 500)

    def knows_token(request: Request) -> bool:
        given = request.headers.get("authorization", "")
        return not token or hmac.compare_digest(given.encode(), f"Bearer {token}".encode())

    async def check_token(request: Request) -> None:
        if not knows_token(request):
            bearer = {"WWW-Authenticate": "Bearer"}
            raise HTTPException(401, "Missing or invalid bearer token", bearer)

    def resolved(artifact: str | None) -> str:
        if artifact is None and len(artifacts) == 1:
            return artifacts[0]
        if artifact not in artifacts:
            refuse(
                422, f"artifact must be one of {', '.join(artifacts)} (got {artifact or 'none'})"
            )
        return artifact

    def page(html: str) -> Callable[[], Awaitable[HTMLResponse]]:
        async def answer() -> HTMLResponse:
            headers = {"Content-Security-Policy": _CSP, "X-Content-Type-Options": "nosniff"}
            return HTMLResponse(html, headers=headers)

        return answer

    for path, html in pages.items():
        app.get(path, response_class=HTMLResponse, include_in_schema=False)(page(html))

    async def state_of_models(whole: bool) -> HealthOut:
        try:
            state = await models.state()
        except HTTPException:
            return JSONResponse({"status": "unavailable"}, 503)  # type: ignore[return-value]
        problems = {name: one.problem for name, one in state.items() if one.problem}
        status = "outdated" if problems else "ok"
        if not whole:
            return HealthOut(status=status)
        return HealthOut(
            status=status,
            artifacts={name: one.version for name, one in state.items() if one.version},
            problems=problems,
        )

    @app.get(LIVE, summary="Whether the process answers at all")
    async def live() -> HealthOut:
        return HealthOut(status="live")

    @app.get(
        "/health/ready", summary="Whether models answer", responses={503: {"model": HealthOut}}
    )
    async def ready() -> HealthOut:
        return await state_of_models(whole=False)

    @app.get(
        "/health",
        summary="State of the models; with the token also their artifacts",
        responses={503: {"model": HealthOut}},
    )
    async def health(request: Request) -> HealthOut:
        return await state_of_models(whole=knows_token(request))

    guarded = APIRouter(
        dependencies=[Depends(refuse_foreign_posts), Depends(check_token), Depends(check_query)],
        responses={status: {"model": ErrorOut} for status in _REFUSALS},
    )

    @guarded.get(
        "/labels",
        summary="Artifacts with their labels and thresholds",
        response_model_exclude_none=True,
    )
    async def labels() -> LabelsOut:
        state = await models.state()
        return LabelsOut(
            artifacts=[ArtifactOut(name=name, **vars(one)) for name, one in state.items()]
        )

    @guarded.get(
        "/metrics", summary="Metrics in Prometheus's text format", response_class=PlainTextResponse
    )
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(counts.text(), media_type="text/plain; version=0.0.4")

    @guarded.post(
        "/tag",
        summary="Tags for images",
        openapi_extra=body_schema("one or more image files"),
        response_model_exclude_none=True,
    )
    async def tag(
        request: Request,
        artifact: ArtifactName = None,
        threshold: Annotated[
            float | None,
            Query(
                ge=0,
                le=1,
                description="lowest score of a tag; by default each label has its own",
                examples=[0.5],
            ),
        ] = None,
        top: Annotated[
            int | None, Query(ge=1, description="at most this many tags per image", examples=[5])
        ] = None,
    ) -> TagsOut:
        name = resolved(artifact)
        async with bodies.admitted(request, limits.request_bytes) as body:
            images = await body.read(partial(read_images, limits=limits))
            names = [image.name for image in images]
            results = await models.call_for_each(images, "tag", name, TagRule(threshold, top))
        versions = [result.version for result in results if not isinstance(result, Refusal)]
        counts.images.labels("refused").inc(len(results) - len(versions))
        counts.images.labels("tagged").inc(len(versions))
        if not versions:
            first = results[0]
            refuse(first.status, f"{names[0]}: {first.reason}", first.retry_after)
        pairs = zip(names, results, strict=True)
        tagged = [image_out(image, result) for image, result in pairs]
        return TagsOut(artifact=name, version=versions[0], images=tagged)

    @guarded.post(
        "/regions", summary="Regions that show labels", openapi_extra=body_schema("one image file")
    )
    async def regions(
        request: Request,
        label: Annotated[list[str], Query(description="labels to locate", examples=[["dog"]])],
        artifact: ArtifactName = None,
    ) -> RegionsOut:
        name = resolved(artifact)
        async with bodies.admitted(request, limits.request_bytes) as body:
            images = await body.read(partial(read_images, limits=limits))
            if len(images) > 1:
                refuse(413, f"a request for regions must have one image (got {len(images)})")
            image = images[0].name
            [found] = await models.call_for_each(images, "regions", name, label)
        if isinstance(found, Refusal):
            refuse(found.status, f"{image}: {found.reason}", found.retry_after)
        return RegionsOut(artifact=name, version=found.version, regions=found.regions)

    if session and work:
        guarded.include_router(review_routes(session, work, bodies))
    app.include_router(guarded)
    return Traffic(app, counts)
