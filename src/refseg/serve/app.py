"""The HTTP server: routes, and nothing that they do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.requests import ClientDisconnect

from refseg.demo import EXPRESSIONS, PHOTO, TITLE
from refseg.serve import problems, schema
from refseg.serve.admission import Admission
from refseg.serve.counters import Counters
from refseg.serve.label_studio import label_studio_routes
from refseg.serve.limits import Limits
from refseg.serve.problems import Problem, ProblemDetails
from refseg.serve.queue import Queue
from refseg.serve.schema import (
    AttentionRequest,
    AttentionResponse,
    PhotoRequest,
    PhotoResponse,
    SegmentRequest,
    SegmentResponse,
)
from refseg.serve.worker import Form

if TYPE_CHECKING:
    from refseg.segmenter import Segmenter

_PAGE = Path(__file__).parent / "page"
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemDetails, "content": {"application/problem+json": {}}}
    for status in (400, 404, 408, 413, 415, 422, 503, 504)
}
_EVERY = 0.25
"""Seconds between two looks at how late the loop is."""
_PICTURE: dict[str, Any] = {"content": {"image/png": {}}}


def create_app(
    load: Callable[[], Segmenter],
    limits: Limits | None = None,
    *,
    name: str = "shipped",
    label_studio: Path | None = None,
    hosts: Collection[str] = (),
    on_fault: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The server as an ASGI application; `app.state.queue` is what computes.

    `load` makes the segmenter, for example `functools.partial(refseg.load, "runs/mine")`. It is pickled and called in
    a process of its own, which starts with the application and is replaced if it dies. `name` is what answers call
    the model. `label_studio` is the folder of Label Studio's photographs, for which the server is then an ML backend.
    `hosts` are the only names by which requests may call this server; by default they may call it anything. `on_fault`
    is called if the model cannot be loaded; `app.state.queue.fault` then says why.
    """
    limits = limits or Limits()
    counters = Counters()
    queue = Queue(load, name, limits, counters, on_fault)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        queue.start()
        watching = asyncio.create_task(_watch_lag(counters))
        yield
        watching.cancel()
        await queue.stop()

    app = FastAPI(
        title="refseg",
        summary="Finds in a photograph what a sentence describes and returns its mask.",
        version=version("refseg"),
        lifespan=lifespan,
        docs_url=None,  # their pages load scripts from another host
        redoc_url=None,
    )
    app.state.queue = queue
    app.state.reading = asyncio.Lock()
    app.add_middleware(Admission, limits=limits, counters=counters, hosts=hosts)
    problems.install(app)
    _add_questions(app, queue, limits)
    if label_studio is not None:
        app.include_router(label_studio_routes(queue, label_studio))
    _add_state(app, queue, counters)
    _add_page(app)
    return app


async def _watch_lag(counters: Counters) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(_EVERY)
        counters.lag.observe(time.perf_counter() - began - _EVERY)


def _add_questions(app: FastAPI, queue: Queue, limits: Limits) -> None:
    async def ask(request: Request, expected: type[PhotoRequest], form: Form) -> Response:
        try:
            question = await schema.read(request, expected, form, limits)
        except ClientDisconnect:
            return Response(status_code=408)
        answer = await queue.ask(question, request.is_disconnected)
        return Response(answer.content, media_type=answer.media_type)

    @app.post(
        "/v1/segment",
        response_model=SegmentResponse,
        responses={200: _PICTURE, **_PROBLEMS},
        openapi_extra=schema.request_body(SegmentRequest),
    )
    async def segment(request: Request) -> Response:
        """Segments in one photograph what one or many expressions describe.

        With `Accept: image/png` the answer is the photograph with all masks drawn in.
        """
        return await ask(request, SegmentRequest, "overlay" if _wants_picture(request) else "rle")

    @app.post(
        "/v1/photos",
        response_model=PhotoResponse,
        responses={200: _PICTURE, **_PROBLEMS},
        openapi_extra=schema.request_body(PhotoRequest),
    )
    async def photos(request: Request) -> Response:
        """Encodes a photograph ahead of the questions about it, which then may name its `photo_id`.

        With `Accept: image/png` the answer is the photograph as the model sees it: upright, 8 bits, RGB.
        """
        return await ask(request, PhotoRequest, "displayed" if _wants_picture(request) else "photo")

    @app.post(
        "/v1/attention",
        response_model=AttentionResponse,
        responses=_PROBLEMS,
        openapi_extra=schema.request_body(AttentionRequest),
    )
    async def attention(request: Request) -> Response:
        """Which places of the photograph attend to each word of a sentence, as a heat map per word."""
        return await ask(request, AttentionRequest, "attention")


def _wants_picture(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return "image/png" in accepted and "application/json" not in accepted


def _add_state(app: FastAPI, queue: Queue, counters: Counters) -> None:
    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """Whether the server runs."""
        return "ok\n"

    @app.get("/readyz", response_class=PlainTextResponse, responses={503: _PROBLEMS[503]})
    async def readyz() -> str:
        """Whether the model answers."""
        if not await queue.ready():
            raise Problem(503, "the model is being loaded; ask again in a few seconds", 3)
        return "ok\n"

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Counters for Prometheus."""
        return Response(counters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", responses={503: _PROBLEMS[503]})
    async def models() -> JSONResponse:
        """The model that answers."""
        if queue.description is None:
            raise Problem(503, "the model is being loaded; ask again in a few seconds", 3)
        return JSONResponse({"models": [queue.description]})


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html")

    @app.get("/examples", include_in_schema=False)
    async def examples() -> list[dict[str, Any]]:
        return [{"name": PHOTO.name, "title": TITLE, "expressions": EXPRESSIONS}]

    @app.get("/examples/{name}", include_in_schema=False)
    async def example(name: str) -> FileResponse:
        if name != PHOTO.name:
            raise Problem(404, "there is no such example; /examples lists them")
        return FileResponse(PHOTO)

    app.mount("/page", StaticFiles(directory=_PAGE), name="page")
