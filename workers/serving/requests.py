"""The images of a request to the tagging service, within limits."""

from __future__ import annotations

import asyncio
import difflib
from typing import Annotated, Any, NamedTuple, NoReturn

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from workers.serving.limits import Limits

_MAX_IMAGES_IN_JSON = 1000  # above every limit on images; it bounds the cost of parsing
_MAX_FIELDS = 10
_SHOWN = 80  # characters of a wrong name

_decoding = asyncio.Semaphore(1)


class ImageIn(BaseModel):
    """An image file's content in base64."""

    model_config = ConfigDict(val_json_bytes="base64")

    data: bytes = Field(json_schema_extra={"format": "byte", "contentEncoding": "base64"})
    name: str | None = None


class ImagesIn(BaseModel):
    """The JSON body of a request."""

    # Only the first error is reported, so parsing stops there.
    images: Annotated[
        list[ImageIn], Field(min_length=1, max_length=_MAX_IMAGES_IN_JSON), FailFast()
    ]


class RequestImage(NamedTuple):
    """The file of an image in a request."""

    name: str
    content: bytes


def refuse(status: int, sentence: str, retry_after: int | None = None) -> NoReturn:
    """Answer a request with an error of one sentence."""
    headers = None if retry_after is None else {"Retry-After": str(retry_after)}
    raise HTTPException(status, sentence, headers)


async def read_images(request: Request, limits: Limits) -> list[RequestImage]:
    """The images of a request's body. Raises HTTPException: 413, 415 or 422."""
    kind = content_type(request)
    if kind not in ("multipart/form-data", "application/json"):
        refuse(
            415,
            "content type must be multipart/form-data, with files in the field images, or "
            f"application/json (got {kind or 'none'})",
        )
    read = await (_from_form if kind == "multipart/form-data" else _from_json)(request, limits)
    images = [
        RequestImage(name or f"image {number}", content)
        for number, (name, content) in enumerate(read, start=1)
    ]
    if not images:
        refuse(422, "images must hold at least one file (got none)")
    if len(images) > limits.images:
        refuse(413, _too_many(limits, str(len(images))))
    for image in images:
        if len(image.content) > limits.image_bytes:
            refuse(413, f"{image.name}: {too_large('the image', limits.image_bytes)}")
    return images


def content_type(request: Request) -> str:
    """The type of a body without its parameters, or ""."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def check_query(request: Request) -> None:
    """Refuse names in the query that the route does not know. Raises HTTPException: 422."""
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}" if near else ""
            refuse(422, f"unknown query parameter {name[:_SHOWN]}{hint}")


def declared_bytes(headers: Headers) -> int | None:
    """The size of a body, if the request declares it. Raises HTTPException: 400.

    With `Transfer-Encoding` the body ends elsewhere than where `Content-Length` says, so a request
    must not have both (RFC 9112, 6.1).
    """
    declared = headers.get("content-length", "")
    if "transfer-encoding" in headers:
        if declared:
            refuse(
                400, "the request must have either Content-Length or Transfer-Encoding (got both)"
            )
        return None
    return int(declared) if declared.isdecimal() else None


async def _from_form(request: Request, limits: Limits) -> list[tuple[str | None, bytes]]:
    most, parts = 10 * limits.images, 0

    class Form(MultiPartParser):
        spool_max_size = limits.request_bytes  # never to disk: the budget of bytes is for memory

        def on_part_begin(self) -> None:
            nonlocal parts
            parts += 1
            if parts > most:
                refuse(413, _too_many(limits, f"more than {most}"))
            super().on_part_begin()

    try:
        form = await Form(request.headers, request.stream(), max_fields=_MAX_FIELDS).parse()
    except MultiPartException as error:
        refuse(422, f"the form cannot be read: {error.message}")
    files = form.getlist("images")
    if any(not isinstance(file, UploadFile) for file in files):
        refuse(422, "images must be files (got text)")
    contents: list[tuple[str | None, bytes]] = []
    for file in files:
        if isinstance(file, UploadFile):
            contents.append((file.filename, await file.read()))
            await file.close()  # so that one file at most is in memory twice
    return contents


async def _from_json(request: Request, limits: Limits) -> list[tuple[str | None, bytes]]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
    async with _decoding:  # the decoded images are in memory beside the body of one request only
        try:
            images = await asyncio.to_thread(ImagesIn.model_validate_json, body)
        except ValidationError as error:
            refuse(422, first_error(error.errors(include_input=False)))
    return [(image.name, image.data) for image in images.images]


def too_large(what: str, most: int) -> str:
    return f"{what} must be at most {most / 1e6:g} MB"


def _too_many(limits: Limits, images: str) -> str:
    return f"a request must have at most {limits.images} images (got {images})"


def first_error(errors: Any, skip: int = 0) -> str:
    """The first of pydantic's errors in one line."""
    place = ".".join(str(part) for part in errors[0]["loc"][skip:])
    return f"{place or 'the body'}: {errors[0]['msg']}"


def body_schema(content: str) -> dict[str, Any]:
    """OpenAPI's description of a body that `read_images` reads."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    schema = ImagesIn.model_json_schema()
    schema["properties"]["images"]["items"] = schema.pop("$defs")["ImageIn"]
    example = {"images": [{"name": "a.png", "data": _EXAMPLE_IMAGE}]}
    return {
        "requestBody": {
            "required": True,
            "description": f"{content}, as form data or in base64",
            "content": {
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": {"images": files}}
                },
                "application/json": {"schema": schema, "example": example},
            },
        }
    }


# A PNG of one pixel, so that the example in the description works.
_EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5Erk"
    "Jggg=="
)
