"""The HTTP service of `datafree serve`: a FastAPI app on Ray Serve in front of the models.

It reads requests, keeps to limits, and asks `TaggingModel` image by image, so that images of
different requests share batches.
"""

from __future__ import annotations

import asyncio
import hmac
import threading
from pathlib import Path
from typing import Annotated, Any

import ray
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from prompt_tuning.tagging.tag_stream import TagRule
from workers.serving.client import ModelCalls
from workers.serving.limits import Limits
from workers.serving.metrics import Measures
from workers.serving.model import Refusal, TaggingModel
from workers.serving.requests import (
    body_schema,
    first_error,
    read_images,
    refuse,
)
from workers.serving.responses import (
    ErrorOut,
    HealthOut,
    LabelsOut,
    RegionsOut,
    TagsOut,
    artifact_out,
    image_out,
)
from workers.serving.traffic import Traffic

APPLICATION = "datafree"
MODEL = TaggingModel.__name__

# What still runs at the end is drained already, or has had its time.
_LAST_SECONDS: dict[str, Any] = {
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 5.0,
}

_CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

ArtifactName = Annotated[
    str | None, Query(description="which artifact; needed when there are several")
]


def build_app(
    handle: DeploymentHandle,
    artifacts: list[str],
    page: str,
    token: str | None,
    hosts: list[str],
    limits: Limits,
) -> Traffic:
    """The app. `page`: the HTML at `/`.

    `token`: wanted for all but the page, `/health` and the description of the API. `hosts`: what a
    browser may call this service; others are a page elsewhere that pretends.
    """
    measures = Measures()
    models = ModelCalls(handle, limits, measures)
    app = FastAPI(
        title="datafree",
        description="Tags for images, from prompts that were tuned on text alone.",
        docs_url=None,  # these load their code from elsewhere
        redoc_url=None,
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)

    @app.exception_handler(StarletteHTTPException)
    async def told(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": first_error(error.errors(), skip=1)}, 422)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the service failed at this; its log says why"}, 500)

    def authorised(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            sentence = "a bearer token is wanted: Authorization: Bearer …"
            raise HTTPException(401, sentence, {"WWW-Authenticate": "Bearer"})

    def chosen(artifact: str | None) -> str:
        if artifact is None and len(artifacts) == 1:
            return artifacts[0]
        if artifact not in artifacts:
            refuse(422, f"artifact: {artifact or 'missing'}; there are {', '.join(artifacts)}")
        return artifact

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        headers = {"Content-Security-Policy": _CSP, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(page, headers=headers)

    @app.get("/health", summary="Whether the models answer", responses={503: {"model": HealthOut}})
    async def health() -> HealthOut:
        try:
            state = await models.state()
        except (TimeoutError, RayActorError, RayServeException):
            return JSONResponse({"status": "unavailable"}, 503)  # type: ignore[return-value]
        problems = {name: of.problem for name, of in state.items() if of.problem}
        return HealthOut(
            status="outdated" if problems else "ok",
            artifacts={name: of.version for name, of in state.items() if of.version},
            problems=problems,
        )

    guarded = APIRouter(
        dependencies=[Depends(authorised)],
        responses={status: {"model": ErrorOut} for status in (401, 413, 415, 422, 429, 503, 504)},
    )

    @guarded.get(
        "/labels",
        summary="Artifacts with their labels and thresholds",
        response_model_exclude_none=True,
    )
    async def labels() -> LabelsOut:
        try:
            state = await models.state()
        except (TimeoutError, RayActorError, RayServeException):
            refuse(503, "the model is being started again; try again soon", retry_after=5)
        return LabelsOut(artifacts=[artifact_out(name, of) for name, of in state.items()])

    @guarded.get("/metrics", summary="For Prometheus", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(measures.text(), media_type="text/plain; version=0.0.4")

    @guarded.post(
        "/tag",
        summary="Tags for images",
        openapi_extra=body_schema("several"),
        response_model_exclude_none=True,
    )
    async def tag(
        request: Request,
        artifact: ArtifactName = None,
        threshold: Annotated[
            float | None,
            Query(ge=0, le=1, description="score of a tag; else each label's own", examples=[0.5]),
        ] = None,
        top: Annotated[
            int | None, Query(ge=1, description="no more tags an image than this", examples=[5])
        ] = None,
    ) -> TagsOut:
        name = chosen(artifact)
        images = await read_images(request, limits)
        results = await models.ask_for_each(images, "tag", name, TagRule(threshold, top))
        refusals = [result for result in results if isinstance(result, Refusal)]
        measures.images.labels("refused").inc(len(refusals))
        measures.images.labels("tagged").inc(len(results) - len(refusals))
        if len(refusals) == len(results):
            refuse(refusals[0].status, f"{images[0].name}: {refusals[0].reason}")
        version = next(of.version for of in results if not isinstance(of, Refusal))
        told = [image_out(of.name, result) for of, result in zip(images, results, strict=True)]
        return TagsOut(artifact=name, version=version, images=told)

    @guarded.post("/regions", summary="What speaks for labels", openapi_extra=body_schema("one"))
    async def regions(
        request: Request,
        label: Annotated[list[str], Query(description="of which labels", examples=[["dog"]])],
        artifact: ArtifactName = None,
    ) -> RegionsOut:
        name = chosen(artifact)
        images = await read_images(request, limits)
        if len(images) > 1:
            refuse(413, f"{len(images)} images; one is the most for regions")
        [found] = await models.ask_for_each(images, "regions", name, label)
        if isinstance(found, Refusal):
            refuse(found.status, f"{images[0].name}: {found.reason}")
        return RegionsOut(artifact=name, version=found.version, regions=found.regions)

    app.include_router(guarded)
    return Traffic(app, limits, measures)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Lifeline:
    """An actor that lives as long as the process that made it, however that ends."""

    async def hold(self) -> None:
        await asyncio.Event().wait()


def _end_with(lifeline: Any) -> None:
    """Applications of Ray Serve outlive who started them; this one is not to."""
    try:
        ray.get(lifeline.hold.remote())
    except RayActorError:
        serve.shutdown()


def application(
    folders: dict[str, Path],
    cache: Path,
    page: str,
    token: str | None,
    hosts: list[str],
    replicas: int,
    cpus: int,
    gpus: float,
    limits: Limits,
    lifeline: Any,
) -> serve.Application:
    """What Ray Serve runs: one front, and `replicas` models of so many CPUs and GPUs each.

    It ends with `lifeline`, an actor `Lifeline`. Of its handle, `drain` has the front refuse what
    comes anew, and returns when what is under way is answered.
    """
    artifacts = list(folders)

    def build() -> Traffic:
        handle = serve.get_deployment_handle(MODEL, APPLICATION)
        return build_app(handle, artifacts, page, token, hosts, limits)

    @serve.ingress(build)
    class Front:
        app: Traffic

        def __init__(self, models: DeploymentHandle) -> None:
            threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()

        async def drain(self) -> None:
            await self.app.drain()

    model = serve.deployment(
        name=MODEL,
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        # The front admits no more than its limit; whoever asks for the state comes through.
        max_ongoing_requests=limits.waiting + 32,
        **_LAST_SECONDS,
    )(TaggingModel)
    front = serve.deployment(
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=2 * limits.waiting,
        **_LAST_SECONDS,
    )(Front)
    return front.bind(model.bind(folders, cache, limits.pixels, gpus, cpus))
