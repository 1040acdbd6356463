"""Between the server and the model's process: waiting requests are batched, a process that dies is replaced."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from async_batcher.batcher import AsyncBatcher  # type: ignore[import-untyped]

from refseg.errors import RefsegError
from refseg.serve import worker
from refseg.serve.counters import Counters
from refseg.serve.limits import Limits
from refseg.serve.problems import Problem
from refseg.serve.worker import Answer, Question

if TYPE_CHECKING:
    from refseg.segmenter import Segmenter

logger = logging.getLogger(__name__)
_PATIENCE = 2
"""A batch that takes this many times the limit of one request hangs. Its process is replaced."""
_PATIENCE_LOADING = 600.0
"""Seconds."""
_PATIENCE_PING = 2.0
"""Seconds within which a process that computes nothing says that it is there."""
_PAUSE = 1.0
"""Seconds between two attempts to load the model again."""


@dataclass(frozen=True)
class _Waiting:
    question: Question
    gone: Callable[[], Awaitable[bool]]


class Queue:
    """Answers questions through one process that has the model."""

    def __init__(
        self,
        load: Callable[[], Segmenter],
        name: str,
        limits: Limits,
        counters: Counters,
        on_fault: Callable[[], None] = lambda: None,
    ) -> None:
        """`load` is pickled and called in the process, and again whenever the process has died.

        `on_fault` is called if the model cannot be loaded.
        """
        self.load, self.name, self.limits, self.counters, self.on_fault = load, name, limits, counters, on_fault
        self.description: dict[str, Any] | None = None
        """The model's, once it answers; None while it is loaded."""
        self.fault: RefsegError | None = None
        """Why the model cannot be loaded."""
        self._pool: ProcessPoolExecutor | None = None
        self._process = 0
        self._since: float | None = None
        """When the batch was handed over that the process computes; None if it computes none."""
        self._loading: asyncio.Task[None] | None = None
        self._batcher = _Batcher(self._answer, limits.batch)

    def start(self) -> None:
        """Begins to load the model."""
        self._loading = asyncio.create_task(self._load(again=self.description is not None))

    async def stop(self) -> None:
        """Finishes what waits, then ends the process."""
        await self._batcher.stop()
        if self._loading is not None:
            self._loading.cancel()
        self._kill()

    async def ready(self) -> bool:
        """Whether the model answers: its process computes and does not hang, or says at once that it is there."""
        if self.description is None:
            return False
        if self._since is not None:
            return time.monotonic() - self._since < self.limits.seconds
        try:
            await self._call(_PATIENCE_PING, os.getpid)
        except (RuntimeError, TimeoutError):  # it died, or is just being replaced
            return False
        return True

    async def ask(self, question: Question, gone: Callable[[], Awaitable[bool]]) -> Answer:
        """The answer, if it is there before the question's deadline; `gone` tells whether anyone still wants it.

        Raises Problem.
        """
        if self.description is None:
            raise Problem(503, "the model is being loaded; send the request again in a few seconds", 3)
        task = asyncio.ensure_future(self._batcher.process(_Waiting(question, gone)))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            # Shielded: where one request is cancelled, the batcher loses the answers of the others in its batch.
            answer: Answer = await asyncio.wait_for(asyncio.shield(task), question.deadline - time.monotonic())
        except TimeoutError:
            raise worker.too_late(self.limits) from None
        self.counters.photos.labels("cached" if answer.cached else "encoded").inc()
        return answer

    async def _answer(self, batch: list[_Waiting]) -> list[Answer | Problem]:
        """One answer for each; called by the batcher, one batch at a time."""
        replies: list[Answer | Problem] = [Problem(408, "nobody waits for this answer any more")] * len(batch)
        now = time.monotonic()
        wanted = [n for n, waiting in enumerate(batch) if waiting.question.deadline > now and not await waiting.gone()]
        if wanted:
            self.counters.batch.observe(len(wanted))
            for number, reply in zip(wanted, await self._compute([batch[n].question for n in wanted]), strict=True):
                replies[number] = reply
        return replies

    async def _compute(self, questions: list[Question]) -> list[Answer | Problem]:
        if self._loading is not None:  # a process that died is being replaced
            patience = max(question.deadline for question in questions) - time.monotonic()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._loading), patience)
        if self.description is None:
            return [Problem(503, "the model cannot be loaded; the server's log says why", 5)] * len(questions)
        self._since = time.monotonic()
        try:
            replies, cache = await self._call(_PATIENCE * self.limits.seconds, worker.answer, questions)
        except (BrokenExecutor, TimeoutError):
            logger.error("the model's process died or hung over %d requests; another is started", len(questions))
            self._replace()
            died = "the process that computed this died; send the request again, or another photograph if that fails"
            return [Problem(503, died, 5)] * len(questions)
        finally:
            self._since = None
        self.counters.cached_photos.set(cache["photos"])
        self.counters.cached_bytes.set(cache["bytes"])
        return replies

    async def _call(self, patience: float, function: Callable[..., Any], *arguments: Any) -> Any:
        running = asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        return await asyncio.wait_for(running, patience)

    async def _load(self, again: bool) -> None:
        """Loads the model; again and again if it has answered before, so that no crash ends the server."""
        while True:
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            try:
                self._process = await self._call(_PATIENCE_LOADING, os.getpid)
                description = await self._call(_PATIENCE_LOADING, worker.start, self.load, self.name, self.limits)
                self._watch()
                self.description = description
                return
            except RefsegError as fault:
                reason = fault
            except (BrokenExecutor, TimeoutError):
                reason = RefsegError("the model's process died while it loaded the model; give it more memory")
            except Exception as fault:  # whatever a device or a library raises
                logger.error("the model cannot be loaded", exc_info=fault)
                reason = RefsegError(f"the model cannot be loaded ({fault or type(fault).__name__}); try --device cpu")
            if not again:
                self.fault = reason
                self.on_fault()
                return
            logger.error("%s; it is tried again", reason)
            self._kill()
            await asyncio.sleep(_PAUSE)

    def _watch(self) -> None:
        """Replaces the process as soon as it dies, even if nothing is asked of it."""
        loop = asyncio.get_running_loop()
        child = next((child for child in multiprocessing.active_children() if child.pid == self._process), None)
        if child is None:
            raise BrokenExecutor

        def died(pool: ProcessPoolExecutor | None = self._pool) -> None:
            loop.remove_reader(child.sentinel)
            if self._pool is pool and self._process and self._since is None:  # else `_compute` notices
                logger.error("the model's process died; another is started")
                self._replace()

        loop.add_reader(child.sentinel, died)

    def _replace(self) -> None:
        self.counters.replaced.inc()
        self._kill()
        self.start()
        self.description = None

    def _kill(self) -> None:
        """Ends the process, which has nothing that is worth keeping."""
        if self._process:
            with suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)
            self._process = 0
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


class _Batcher(AsyncBatcher):
    """Hands over all that waits, up to a batch, whenever the process is free; nothing waits for company."""

    def __init__(self, answer: Callable[[list[_Waiting]], Awaitable[list[Answer | Problem]]], size: int) -> None:
        super().__init__(max_batch_size=size, max_queue_time=0.0)
        self.answer = answer

    async def process_batch(self, batch: list[_Waiting]) -> list[Answer | Problem]:
        return await self.answer(batch)
