"""What a request contains: its schema, and the question that it asks."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError
from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from refseg.serve.limits import Limits
from refseg.serve.problems import Problem
from refseg.serve.worker import Form, Question

Returned = TypeVar("Returned")
_MAX_VALUES = 400_000
"""Of a JSON body, by its commas, quotes and brackets. A million objects take a second, in which nobody is served."""
_CURES = {
    "photo": "give the file's bytes, in JSON as base64",
    "photo_id": "give the photo_id of an earlier answer, 64 hexadecimal digits",
    "expressions": 'give sentences, such as ["the red bag"]',
    "expression": 'give one sentence, such as "the red bag"',
    "threshold": "give a number between 0 and 1, such as 0.5",
    "format": "one of rle, png, polygons",
}


class PhotoRequest(BaseModel):
    """A photograph: `photo`, or the `photo_id` of one that the server still holds."""

    model_config = ConfigDict(extra="forbid")
    photo: str | None = Field(
        None,
        description="PNG, JPEG, WebP, BMP or TIFF: a file in a form, base64 (or a data: URL) in JSON.",
        json_schema_extra={"contentEncoding": "base64"},
    )
    photo_id: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="SHA-256 of the photograph's bytes, as an earlier answer gave it."
    )


class SegmentRequest(PhotoRequest):
    """A photograph and what to find in it."""

    expressions: Annotated[
        list[str],
        FailFast(),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Field(min_length=1),
    ] = Field(description="Sentences; a form repeats the field.", examples=[["the red bag on the left"]])
    threshold: float | None = Field(
        None, gt=0, lt=1, allow_inf_nan=False, description="How sure of a pixel to be; by default the model's."
    )
    format: Literal["rle", "png", "polygons"] = Field(
        "rle",
        description="Masks as compressed COCO RLE, PNG (base64, 1 bit, white is the referent) or COCO polygons.",
    )


class AttentionRequest(PhotoRequest):
    """A photograph and one sentence."""

    expression: str = Field(examples=["the red bag on the left"])


class Timings(BaseModel):
    """Seconds. What was held already costs 0; `segment` is that of the batch the request was part of."""

    decode: float
    encode: float
    segment: float


class PhotoResponse(BaseModel):
    """A photograph that the server holds."""

    model: str
    photo_id: str
    size: tuple[int, int] = Field(description="[H, W] in pixels, as displayed.")
    cached: bool = Field(description="Whether it was encoded by an earlier request.")
    timings: Timings


class Word(BaseModel):
    """How much every place of the photograph attends to one word of the sentence."""

    word: str
    unknown: bool = Field(description="Whether the model has never seen it.")
    map: list[list[float]] = Field(
        description="Rows from top to bottom, over the whole photograph: 0 where least, 1 where most."
    )


class AttentionResponse(PhotoResponse):
    """The words that the model reads, in their order."""

    words: list[Word]


class Result(BaseModel):
    """The answer to one expression; of rle, png and polygons, the one that was asked for."""

    expression: str
    score: float = Field(description="The IoU to expect, 0..1; 0 where the mask is empty.")
    found: bool | None = Field(description="Whether it is in the photograph at all; null if the model does not say.")
    box: tuple[int, int, int, int] | None = Field(description="xyxy in pixels; null if nothing was found.")
    size: tuple[int, int] = Field(description="[H, W] in pixels.")
    unknown_words: list[str] = Field(description="Words that the model has never seen.")
    truncated: bool = Field(description="Whether the expression was longer than the model reads.")
    rle: dict[str, Any] | None = Field(None, description="COCO: size [H, W] and counts.")
    png: str | None = Field(None, description="base64")
    polygons: list[list[int]] | None = Field(None, description="Rings [x, y, x, y, …], even-odd.")


class SegmentResponse(PhotoResponse):
    """Results in the order of the expressions."""

    results: list[Result]


def request_body(schema: type[PhotoRequest]) -> dict[str, Any]:
    """OpenAPI's description of a body that is a form or JSON."""
    as_json = schema.model_json_schema()
    as_form = schema.model_json_schema()
    as_form["properties"]["photo"] = {
        "type": "string",
        "format": "binary",
        "contentMediaType": "application/octet-stream",
        "description": "The photograph's file.",
    }
    content = {"multipart/form-data": {"schema": as_form}, "application/json": {"schema": as_json}}
    return {"requestBody": {"required": True, "content": content}}


async def read(request: Request, schema: type[PhotoRequest], form: Form, limits: Limits) -> Question:
    """The question that a request asks. Raises Problem."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    if options.get(b"charset", b"utf-8").lower() != b"utf-8":  # some of Python's decoders take hours, or fail
        raise Problem(415, "the text is not in UTF-8; send it in UTF-8 and leave the charset out")
    if kind == b"multipart/form-data":
        fields, photo = await _read_form(request, schema, limits)
        content = _validated(schema, fields)
    elif kind == b"application/json":
        content, photo = await apart(request, _from_json, schema, await request.body())
    else:
        raise Problem(415, "the content type is not known; send multipart/form-data or application/json")
    return await apart(request, _question, content, photo, form, limits, request.state.deadline)


async def apart(request: Request, function: Callable[..., Returned], *arguments: Any) -> Returned:
    """What a function returns. It runs in a thread, one at a time, so that a large body does not hold up others."""
    async with request.app.state.reading:
        return await asyncio.to_thread(function, *arguments)


def _question(content: PhotoRequest, photo: bytes | None, form: Form, limits: Limits, deadline: float) -> Question:
    if (photo is None) == (content.photo_id is None):
        raise Problem(422, "a request is about one photograph; send either photo or the photo_id of an earlier answer")
    expressions: tuple[str, ...] = ()
    threshold = None
    if isinstance(content, AttentionRequest):
        expressions = (content.expression,)
    elif isinstance(content, SegmentRequest):
        expressions, threshold = tuple(content.expressions), content.threshold
        form = content.format if form == "rle" else form
    if len(expressions) > limits.expressions:
        few = f"the request has {len(expressions)} expressions and the limit is {limits.expressions}; send several"
        raise Problem(422, few)
    photo_id = content.photo_id or hashlib.sha256(photo or b"").hexdigest()
    return Question(photo_id, photo, expressions, threshold, form, deadline)


async def _read_form(
    request: Request, schema: type[PhotoRequest], limits: Limits
) -> tuple[dict[str, Any], bytes | None]:
    fields: dict[str, Any] = {}
    photo = None
    try:
        async with request.form(max_files=1, max_fields=limits.expressions + 8) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name != "photo":
                        raise Problem(422, f"the file stands in the field {name[:40]!r}; name the field photo")
                    photo = await value.read()
                elif name == "photo":
                    raise Problem(422, "the field photo holds text; send the file itself, with a file name")
                elif name == "expressions":
                    fields.setdefault(name, []).append(value)
                else:
                    fields[name] = value
    except (HTTPException, FormParserError) as fault:  # which of them depends on Starlette's version
        reason = str(getattr(fault, "detail", fault)).rstrip(".")
        raise Problem(400, f"the form cannot be read ({reason}); send one file photo and text fields") from None
    return fields, photo


def _from_json(schema: type[PhotoRequest], body: bytes) -> tuple[Any, bytes | None]:
    content = _validated(schema, _read_json(body))
    return content, None if content.photo is None else _from_base64(content.photo)


def _read_json(body: bytes) -> dict[str, Any]:
    try:
        fields = from_json(check_values(body))
    except ValueError as fault:
        raise Problem(422, f"the body is not the JSON that is expected ({fault}); see /openapi.json") from None
    if not isinstance(fields, dict):
        raise Problem(422, "the body is not the JSON that is expected (an object); see /openapi.json")
    return fields


def check_values(body: bytes) -> bytes:
    """The body itself. Raises Problem if it has so many values that reading them would hold up other requests."""
    if sum(map(body.count, (b",", b'"', b"[", b"{"))) > _MAX_VALUES:
        raise Problem(413, f"the body has more than {_MAX_VALUES:,} values, quotes and brackets; send fewer")
    return body


def _validated(schema: type[PhotoRequest], fields: dict[str, Any]) -> Any:
    """`fields` as the schema reads them; stops at the first fault, of which a stranger's body can hold millions."""
    for name in fields:
        if name not in schema.model_fields:
            raise Problem(422, f"there is no field {name[:40]!r}; the fields are described in /openapi.json")
    try:
        return schema.model_validate(fields)
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False, include_context=False)[0]
        raise Problem(422, _sentence(first["loc"], first["msg"])) from None


def _sentence(place: tuple[int | str, ...], message: str) -> str:
    name = str(place[0])
    where = name + "".join(f"[{step}]" if isinstance(step, int) else "" for step in place[1:])
    return f"{where}: {message[:1].lower()}{message[1:]}; {_CURES.get(name, 'see /openapi.json')}"


def _from_base64(text: str) -> bytes:
    if text.startswith(("http://", "https://")):
        raise Problem(422, "photo is an address and the server fetches nothing; download it and send the file's bytes")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Problem(422, "photo is not base64; encode the file's bytes, or send the file in a form") from None
