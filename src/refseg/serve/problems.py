"""Refusals over HTTP: RFC 9457 problem details, each one sentence that names the cure."""

from __future__ import annotations

import http
import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)


class ProblemDetails(BaseModel):
    """RFC 9457: why a request was refused and what to do about it."""

    type: str = "about:blank"
    title: str = Field(description="What the status means.")
    status: int
    detail: str = Field(description="What is wrong with this request, and the cure.")


class Problem(Exception):  # noqa: N818 (the word of RFC 9457)
    """A request that is not answered as asked; travels from the worker's process as well."""

    def __init__(self, status: int, detail: str, retry_after: int | None = None) -> None:
        super().__init__(status, detail, retry_after)  # all three, for pickle
        self.status, self.detail, self.retry_after = status, detail, retry_after

    def response(self) -> JSONResponse:
        details = ProblemDetails(title=http.HTTPStatus(self.status).phrase, status=self.status, detail=self.detail)
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return JSONResponse(details.model_dump(), self.status, headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Every error of the app leaves as problem+json."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OSError, _exhausted)
    app.add_exception_handler(MemoryError, _exhausted)
    app.add_exception_handler(Exception, _unexpected)


async def _problem(_: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, Problem)
    return fault.response()


async def _http(request: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, HTTPException)
    path = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in request.url.path[:100])
    details = {
        404: f"there is no {path}; /openapi.json lists what there is",
        405: f"{path} does not take {request.method}; /openapi.json lists what it takes",
    }
    response = Problem(fault.status_code, details.get(fault.status_code, str(fault.detail))).response()
    response.headers.update(fault.headers or {})
    return response


async def _exhausted(request: Request, fault: Exception) -> JSONResponse:
    """No disk, no memory or no descriptors are left: nothing that the request could mend, and nothing to debug."""
    logger.error("%s %s: %s", request.method, request.url.path, fault or type(fault).__name__)
    return Problem(503, "the server has no disk space, memory or open files left; send it again later", 10).response()


async def _unexpected(request: Request, fault: Exception) -> JSONResponse:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=fault)
    return Problem(500, "the server made a mistake, which its log describes; please report it").response()
