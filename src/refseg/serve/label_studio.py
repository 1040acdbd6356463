"""What Label Studio asks of an ML backend, answered by the server: routes under /label-studio.

`label-studio-ml`, the package that usually does this, is on the package index only in a version of 2022 that pins Flask
1.1; the protocol is five routes of JSON.
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

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel, FailFast, Field, ValidationError

from refseg.annotation.label_studio import Control, brush_region, find_photo, polygon_regions, read_config
from refseg.errors import RefsegError
from refseg.masks import decode_mask
from refseg.serve.limits import Limits
from refseg.serve.problems import Problem
from refseg.serve.queue import Queue
from refseg.serve.worker import Question

logger = logging.getLogger(__name__)
Json = dict[str, Any]

PREFIX = "/label-studio"
Said = TypeVar("Said", bound=BaseModel)


class Setup(BaseModel):
    """What Label Studio says when a backend is connected; its access token is not wanted."""

    label_config: str | None = Field(None, alias="schema")


class Task(BaseModel):
    """A photograph to be labelled, among other data."""

    data: Json


class Context(BaseModel):
    """What the annotator has drawn or typed in an interactive request."""

    result: Annotated[list[Json], FailFast()] = []


class Parameters(BaseModel):
    """Of an interactive request."""

    context: Context | None = None


class Predict(BaseModel):
    """A request for predictions."""

    tasks: Annotated[list[Task], FailFast()]
    label_config: str
    params: Parameters = Parameters()


def add_label_studio(app: FastAPI, folder: Path) -> None:
    """Adds the routes to the server of `create_app`; photographs lie in `folder`, and none is ever fetched."""
    queue: Queue = app.state.queue
    router = APIRouter(prefix=PREFIX, include_in_schema=False)

    @router.get("/health")
    async def health() -> Json:
        if queue.description is None:
            raise Problem(503, "the model is being loaded; connect again in a few seconds", 3)
        return {"status": "UP", "model_class": "refseg"}

    @router.get("/versions")
    async def versions() -> Json:
        return {"versions": [queue.name]}

    @router.post("/setup")
    async def setup(request: Request) -> Json:
        said = await _read(request, Setup)
        if said.label_config is not None:
            _controls(said.label_config)
        return {"model_version": queue.name}

    @router.post("/webhook")
    async def webhook(request: Request) -> Json:
        try:
            action = (await request.json())["action"]
        except (ValueError, TypeError, KeyError):
            action = None
        if action == "START_TRAINING":
            raise Problem(501, "this backend does not train; export the project as COCO and use refseg train")
        return {}

    @router.post("/predict")
    async def predict(request: Request) -> Json:
        return await _predict_all(queue, request, await _read(request, Predict), folder)

    app.include_router(router)


async def _predict_all(queue: Queue, request: Request, said: Predict, folder: Path) -> Json:
    """A prediction for each task. Raises Problem if none can be made."""
    controls = _controls(said.label_config)
    typed = _typed(said.params.context)
    at_once = asyncio.Semaphore(queue.limits.batch)  # no more photographs in memory than are computed together

    async def one(task: Task) -> Json | Problem:
        async with at_once:
            try:
                return await _predict(queue, request, task.data, controls, typed, folder)
            except Problem as fault:
                logger.warning("a task of Label Studio was not answered: %s", fault.detail)
                return fault

    outcomes = await asyncio.gather(*map(one, said.tasks))
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Problem)]
    if refusals and len(refusals) == len(outcomes):
        raise refusals[0]
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
        if len(asked) > queue.limits.expressions:
            raise Problem(422, f"there are {len(asked)} labels and the limit is {queue.limits.expressions}; use fewer")
        photo = await asyncio.to_thread(_photo, data.get(control.key), folder, queue.limits)
        question = Question(
            photo_id=hashlib.sha256(photo).hexdigest(),
            photo=photo,
            expressions=tuple(expression for _, expression in asked),
            form="rle" if control.kind == "brushlabels" else "polygons",
        )
        answer = await queue.ask(question, request.is_disconnected, request.state.deadline)
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
    entries = context.result if context else []
    texts = [entry.get("value", {}).get("text", []) for entry in entries if entry.get("type") == "textarea"]
    return [text for each in texts for text in ([each] if isinstance(each, str) else each) if text.strip()]


def _photo(said: object, folder: Path, limits: Limits) -> bytes:
    """A photograph's bytes. Raises Problem."""
    if not isinstance(said, str) or not said:
        raise Problem(422, "the task has no photograph where the Image tag says; look at its value")
    if said.startswith("data:"):
        try:
            return base64.b64decode(said.partition(",")[2], validate=True)
        except (binascii.Error, ValueError):
            raise Problem(422, "the photograph's data: address is not base64; encode the file's bytes") from None
    try:
        path = find_photo(said, folder)
        if path.stat().st_size > limits.upload_bytes:
            raise Problem(413, "the photograph's file is larger than the limit of --max-upload; scale it down first")
        return path.read_bytes()
    except RefsegError as fault:
        raise Problem(422, str(fault)) from None
    except OSError as fault:
        raise Problem(422, f"the photograph cannot be read ({fault.strerror}); check its permissions") from None


def _controls(config: str) -> list[Control]:
    try:
        return read_config(config)
    except RefsegError as fault:
        raise Problem(422, str(fault)) from None


async def _read(request: Request, schema: type[Said]) -> Said:
    try:
        return schema.model_validate_json(await request.body())
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise Problem(422, f"{where}: {first['msg']}; this address is for Label Studio") from None
