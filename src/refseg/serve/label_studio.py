"""The routes under /label-studio, by which Label Studio uses the server as an ML backend.

`label-studio-ml`, the package that usually does this, is on the package index only in a version of 2022 that pins Flask
1.1. The protocol is five routes of JSON.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import logging
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, FailFast, Field, ValidationError

from refseg.annotation.label_studio import Control, brush_region, find_photo, polygon_regions, read_config
from refseg.errors import RefsegError
from refseg.masks import decode_mask
from refseg.serve.limits import Limits
from refseg.serve.problems import Problem
from refseg.serve.queue import Queue
from refseg.serve.schema import apart, check_values
from refseg.serve.worker import Question

logger = logging.getLogger(__name__)
Json = dict[str, Any]

PREFIX = "/label-studio"
Content = TypeVar("Content", bound=BaseModel)


class Setup(BaseModel):
    """What Label Studio sends when a backend is connected; its access token is not wanted."""

    label_config: str | None = Field(None, alias="schema")


class Task(BaseModel):
    """A photograph to be labelled, among other data."""

    data: Json


class Entry(BaseModel):
    """Something that the annotator has drawn or typed."""

    type: Any = None
    value: Any = None


class Context(BaseModel):
    """What the annotator has drawn or typed in an interactive request."""

    result: Annotated[list[Entry], FailFast()] = []


class Parameters(BaseModel):
    """Of an interactive request."""

    context: Context | None = None


class Predict(BaseModel):
    """A request for predictions."""

    tasks: Annotated[list[Task], FailFast()]
    label_config: str
    params: Parameters = Parameters()


class Event(BaseModel):
    """What Label Studio reports of a project."""

    action: Any = None


def label_studio_routes(queue: Queue, folder: Path) -> APIRouter:
    """The routes of an ML backend; photographs lie in `folder`, and none is ever fetched."""
    router = APIRouter(prefix=PREFIX, include_in_schema=False)

    @router.get("/health")
    async def health() -> Json:
        if not await queue.ready():
            raise Problem(503, "the model is being loaded; connect again in a few seconds", 3)
        return {"status": "UP", "model_class": "refseg"}

    @router.get("/versions")
    async def versions() -> Json:
        return {"versions": [queue.name]}

    @router.post("/setup")
    async def setup(request: Request) -> Json:
        content = await _read(request, Setup)
        if content.label_config is not None:
            await _controls(request, content.label_config)
        return {"model_version": queue.name}

    @router.post("/webhook")
    async def webhook(request: Request) -> Json:
        if (await _read(request, Event)).action == "START_TRAINING":
            raise Problem(501, "this backend does not train; export the project as COCO and use refseg train")
        return {}

    @router.post("/predict")
    async def predict(request: Request) -> Json:
        return await _predict_all(queue, request, await _read(request, Predict), folder)

    return router


async def _predict_all(queue: Queue, request: Request, content: Predict, folder: Path) -> Json:
    """A prediction for each task. Raises Problem if none can be made."""
    if len(content.tasks) > queue.limits.tasks:
        number = f"{len(content.tasks):,}"
        raise Problem(422, f"there are {number} tasks and the limit is {queue.limits.tasks}; select fewer")
    controls = await _controls(request, content.label_config)
    typed = _typed(content.params.context)
    most = max(len(typed or control.labels) for control in controls)
    if most > queue.limits.expressions:
        raise Problem(422, f"there are {most} labels and the limit is {queue.limits.expressions}; use fewer")
    at_once = asyncio.Semaphore(queue.limits.batch)  # no more photographs in memory than are computed together

    async def prediction(task: Task) -> Json | Problem:
        async with at_once:
            try:
                return await _predict(queue, request, task.data, controls, typed, folder)
            except Problem as fault:
                return fault

    outcomes = await asyncio.gather(*map(prediction, content.tasks))
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Problem)]
    if refusals and len(refusals) == len(outcomes):
        raise refusals[0]
    for refusal in refusals:
        logger.warning("a task of Label Studio was not answered: %s", refusal.detail)
    # Label Studio pairs answers with tasks by their number: a task without one gets an empty prediction.
    empty: Json = {"result": [], "score": 0.0}
    results = [empty if isinstance(outcome, Problem) else outcome for outcome in outcomes]
    return {"results": [{**each, "model_version": queue.name} for each in results], "model_version": queue.name}


async def _predict(
    queue: Queue, request: Request, data: Json, controls: list[Control], typed: list[str], folder: Path
) -> Json:
    """The prediction for one task. Raises Problem."""
    regions: list[Json] = []
    for control in controls:
        asked = list(control.labels.items())
        if typed:
            asked = [(next(iter(control.labels)), expression) for expression in typed]
        photo = await asyncio.to_thread(_photo, data.get(control.key), folder, queue.limits)
        question = Question(
            photo_id=hashlib.sha256(photo).hexdigest(),
            photo=photo,
            expressions=tuple(expression for _, expression in asked),
            form="rle" if control.kind == "brushlabels" else "polygons",
            deadline=request.state.deadline,
        )
        answer = await queue.ask(question, request.is_disconnected)
        results = json.loads(answer.content)["results"]
        labels = [label for label, _ in asked]
        regions += await asyncio.to_thread(_regions, control, labels, results)
    return {"result": regions, "score": fmean(region["score"] for region in regions) if regions else 0.0}


def _regions(control: Control, labels: list[str], results: list[Json]) -> list[Json]:
    regions: list[Json] = []
    for label, result in zip(labels, results, strict=True):
        if result["box"] is None or result["found"] is False:
            continue  # an annotator would only have to delete it
        if control.kind == "brushlabels":
            mask = decode_mask(result["rle"]["counts"], *result["rle"]["size"])
            regions.append(brush_region(control, label, result["score"], mask, result["expression"]))
        else:
            size = (result["size"][0], result["size"][1])
            regions += polygon_regions(control, label, result["score"], result["polygons"], size, result["expression"])
    return regions


def _typed(context: Context | None) -> list[str]:
    """The sentences that an annotator typed into a TextArea: they stand for the labels' own expressions."""
    values = [entry.value for entry in context.result if entry.type == "textarea"] if context else []
    texts = [value.get("text") for value in values if isinstance(value, dict)]
    lines = [line for text in texts for line in (text if isinstance(text, list) else [text])]
    return [line for line in lines if isinstance(line, str) and line.strip()]


def _photo(address: object, folder: Path, limits: Limits) -> bytes:
    """A photograph's bytes. Raises Problem."""
    if not isinstance(address, str) or not address:
        raise Problem(422, "the task has no photograph where the Image tag says; look at its value")
    if address.startswith("data:"):
        try:
            return base64.b64decode(address.partition(",")[2], validate=True)
        except (binascii.Error, ValueError):
            raise Problem(422, "the photograph's data: address is not base64; encode the file's bytes") from None
    try:
        path = find_photo(address, folder)
        if path.stat().st_size > limits.upload_bytes:
            raise Problem(413, "the photograph's file is larger than the limit of --max-upload; scale it down first")
        return path.read_bytes()
    except RefsegError as fault:
        raise Problem(422, str(fault)) from None
    except OSError as fault:
        raise Problem(422, f"the photograph cannot be read ({fault.strerror}); check its permissions") from None


async def _controls(request: Request, config: str) -> list[Control]:
    try:
        return await apart(request, read_config, config)
    except RefsegError as fault:
        raise Problem(422, str(fault)) from None


async def _read(request: Request, schema: type[Content]) -> Content:
    try:
        return await apart(request, schema.model_validate_json, check_values(await request.body()))
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:100] or "the body"
        raise Problem(422, f"{where}: {first['msg']}; this address is for Label Studio") from None
