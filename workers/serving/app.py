"""The HTTP service of `datafree serve`: a FastAPI app on Ray Serve in front of the models.

It reads requests, enforces limits, and sends images to `TaggingModel` one by one, so that images of
different requests share batches.
"""

from __future__ import annotations

import asyncio
import hmac
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import ray
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from prompt_tuning.tagging.tag_stream import TagRule
from workers.serving.client import ModelCalls
from workers.serving.limits import Limits
from workers.serving.metrics import Metrics
from workers.serving.model import Refusal, TaggingModel
from workers.serving.requests import body_schema, first_error, read_images, refuse
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
from workers.serving.traffic import Traffic

APPLICATION = "datafree"
MODEL = TaggingModel.__name__

# Short, because `drain` comes first.
_SHUTDOWN: dict[str, Any] = {
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 5.0,
}

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

    `token` is required for all but the pages, `/health` and the description of the API. `hosts`:
    host names that requests may use; refusing others prevents DNS rebinding. `review`: a folder
    whose images are reviewed, with the only artifact.
    """
    counts = Metrics()
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
        return JSONResponse({"error": "Internal server error; see the server log"}, 500)

    def check_token(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
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

    @app.get("/health", summary="State of the models", responses={503: {"model": HealthOut}})
    async def health() -> HealthOut:
        try:
            state = await models.state()
        except HTTPException:
            return JSONResponse({"status": "unavailable"}, 503)  # type: ignore[return-value]
        problems = {name: one.problem for name, one in state.items() if one.problem}
        return HealthOut(
            status="outdated" if problems else "ok",
            artifacts={name: one.version for name, one in state.items() if one.version},
            problems=problems,
        )

    guarded = APIRouter(
        dependencies=[Depends(check_token)],
        responses={status: {"model": ErrorOut} for status in (401, 413, 415, 422, 429, 503, 504)},
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
        images = await read_images(request, limits)
        results = await models.call_for_each(images, "tag", name, TagRule(threshold, top))
        versions = [result.version for result in results if not isinstance(result, Refusal)]
        counts.images.labels("refused").inc(len(results) - len(versions))
        counts.images.labels("tagged").inc(len(versions))
        if not versions:
            refuse(results[0].status, f"{images[0].name}: {results[0].reason}")
        pairs = zip(images, results, strict=True)
        tagged = [image_out(image.name, result) for image, result in pairs]
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
        images = await read_images(request, limits)
        if len(images) > 1:
            refuse(413, f"a request for regions must have one image (got {len(images)})")
        [found] = await models.call_for_each(images, "regions", name, label)
        if isinstance(found, Refusal):
            refuse(found.status, f"{images[0].name}: {found.reason}")
        return RegionsOut(artifact=name, version=found.version, regions=found.regions)

    if session and work:
        guarded.include_router(review_routes(session, work))
    app.include_router(guarded)
    return Traffic(app, limits, counts)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Lifeline:
    """An actor that lives as long as the process that created it, however that ends."""

    async def hold(self) -> None:
        await asyncio.Event().wait()


def _shut_down_after(lifeline: Any) -> None:
    """Shut Ray Serve down with the process that started it, which it would outlive."""
    try:
        ray.get(lifeline.hold.remote())
    except RayActorError:
        serve.shutdown()


def application(
    folders: dict[str, Path],
    cache: Path,
    pages: dict[str, str],
    token: str | None,
    hosts: list[str],
    replicas: int,
    cpus: int,
    gpus: float,
    limits: Limits,
    lifeline: Any,
    review: ReviewFolder | None = None,
) -> serve.Application:
    """The application for Ray Serve: one front, and `replicas` models.

    `cpus` and `gpus` are what each model gets. The application ends with `lifeline`, an actor
    `Lifeline`. The method `drain` of its handle makes the front refuse new requests, and returns
    when those under way are answered.
    """
    artifacts = list(folders)

    def build() -> Traffic:
        handle = serve.get_deployment_handle(MODEL, APPLICATION)
        return build_app(handle, artifacts, pages, token, hosts, limits, review)

    @serve.ingress(build)
    class Front:
        app: Traffic

        def __init__(self, models: DeploymentHandle) -> None:
            threading.Thread(target=_shut_down_after, args=(lifeline,), daemon=True).start()

        async def drain(self) -> None:
            await self.app.drain()

    model = serve.deployment(
        name=MODEL,
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        # The front admits `waiting` images; the rest leaves room for questions about the state.
        max_ongoing_requests=limits.waiting + 32,
        **_SHUTDOWN,
    )(TaggingModel)
    front = serve.deployment(
        ray_actor_options={"num_cpus": 0}, max_ongoing_requests=2 * limits.waiting, **_SHUTDOWN
    )(Front)
    return front.bind(model.bind(folders, cache, limits.pixels, gpus, cpus))
