"""The images of a request to the tagging service, within limits."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, NamedTuple, NoReturn

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Message, Receive

from workers.serving.limits import Limits

# What a person's image is named where the request does not say.
_NAMELESS = "image {number}"
_MOST_IN_A_BODY = 1000  # above every limit on images; it bounds what reading a body takes


class ImageIn(BaseModel):
    """An image file's content in base64."""

    model_config = ConfigDict(val_json_bytes="base64")

    data: bytes = Field(json_schema_extra={"format": "byte", "contentEncoding": "base64"})
    name: str | None = None


class ImagesIn(BaseModel):
    """The JSON body of a request."""

    # One error is told, so one is enough, whatever a body holds.
    images: Annotated[list[ImageIn], Field(min_length=1, max_length=_MOST_IN_A_BODY), FailFast()]


class RequestImage(NamedTuple):
    """An image of a request, not yet read."""

    name: str
    content: bytes


def refuse(status: int, sentence: str, retry_after: int | None = None) -> NoReturn:
    """Raise what answers a request so, with a sentence for the person."""
    headers = None if retry_after is None else {"Retry-After": str(retry_after)}
    raise HTTPException(status, sentence, headers)


async def read_images(request: Request, limits: Limits) -> list[RequestImage]:
    """The images of a request's body. Raises HTTPException: 413, 415 or 422."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/json"):
        refuse(
            415,
            f"content type {kind or 'missing'}; send multipart/form-data with files in the field "
            "images, or application/json",
        )
    if (declared_bytes(request.headers) or 0) > limits.request_bytes:
        refuse(413, _too_large("the request", limits.request_bytes))
    limited = Request(request.scope, _limited(request.receive, limits.request_bytes))
    reader = _from_form if kind == "multipart/form-data" else _from_json
    try:
        async with asyncio.timeout(limits.seconds):
            read = await reader(limited, limits)
    except TimeoutError:
        refuse(504, f"sending this took longer than {limits.seconds:g} seconds")
    images = [
        RequestImage(name or _NAMELESS.format(number=number), content)
        for number, (name, content) in enumerate(read, start=1)
    ]
    if not images:
        refuse(422, "images: none; send at least one")
    if len(images) > limits.images:
        refuse(413, f"{len(images)} images; {limits.images} are the most in a request")
    for image in images:
        if len(image.content) > limits.image_bytes:
            refuse(413, f"{image.name}: {_too_large('the image', limits.image_bytes)}")
    return images


def declared_bytes(headers: Headers) -> int | None:
    """How long a request says that its body is, if it does."""
    declared = headers.get("content-length", "")
    return int(declared) if declared.isdecimal() else None


async def _from_form(request: Request, limits: Limits) -> list[tuple[str | None, bytes]]:
    try:
        form = await request.form(max_files=10 * limits.images, max_fields=10)
    except StarletteHTTPException as error:
        if error.status_code != 400:
            raise
        many = str(error.detail).startswith("Too many files")
        refuse(413 if many else 422, f"the form cannot be read: {error.detail}")
    files = form.getlist("images")
    if any(not isinstance(file, UploadFile) for file in files):
        refuse(422, "images: text; send files in this field")
    return [(file.filename, await file.read()) for file in files if isinstance(file, UploadFile)]


async def _from_json(request: Request, limits: Limits) -> list[tuple[str | None, bytes]]:
    body = await request.body()
    try:
        images = await asyncio.to_thread(ImagesIn.model_validate_json, body)
    except ValidationError as error:
        refuse(422, first_error(error.errors(include_input=False)))
    return [(image.name, image.data) for image in images.images]


def _limited(receive: Receive, most: int) -> Receive:
    """The body as it comes, refused as soon as it is too long."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            refuse(413, _too_large("the request", most))
        return message

    return limited


def _too_large(what: str, most: int) -> str:
    return f"{what} is too large; {most / 1e6:g} MB are the most"


def first_error(errors: Any, skip: int = 0) -> str:
    """The first of pydantic's errors as a sentence."""
    place = ".".join(str(part) for part in errors[0]["loc"][skip:])
    return f"{place or 'the body'}: {errors[0]['msg']}"


def body_schema(how_many: str) -> dict[str, Any]:
    """OpenAPI's words for a body that `read_images` reads."""
    described = f"{how_many} image files, as files or in base64"
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    schema = ImagesIn.model_json_schema()
    schema["properties"]["images"]["items"] = schema.pop("$defs")["ImageIn"]
    example = {"images": [{"name": "a.png", "data": _EXAMPLE_IMAGE}]}
    return {
        "requestBody": {
            "required": True,
            "description": described,
            "content": {
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": {"images": files}}
                },
                "application/json": {"schema": schema, "example": example},
            },
        }
    }


# A PNG of one pixel, so that the example can be sent as it is.
_EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5Erk"
    "Jggg=="
)
