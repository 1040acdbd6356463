"""The bounds in front of the model, without a server around them."""

from __future__ import annotations

import asyncio
import time

import pytest
from local_server import SEGMENT

from refseg.serve import Limits
from refseg.serve.admission import Admission
from refseg.serve.counters import Counters
from refseg.serve.problems import Problem
from refseg.serve.queue import Queue
from refseg.serve.worker import Answer, Question


class TestAdmission:
    """The bounds in front of an application that does nothing else."""

    @staticmethod
    def through(app, limits, messages, send):
        scope = {"type": "http", "method": "POST", "path": SEGMENT, "headers": []}

        async def receive():
            return messages.pop(0) if messages else await asyncio.Event().wait()

        admission = Admission(app, limits, Counters())
        asyncio.run(asyncio.wait_for(admission(scope, receive, send), 5))
        assert admission.inside == 0
        return scope

    def test_an_answer_that_nobody_fetches_frees_its_place(self):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200})

        async def stuck(message):
            await asyncio.Event().wait()

        self.through(app, Limits(seconds=0.05), [], stuck)

    def test_the_time_counts_from_the_first_byte(self):
        async def app(scope, receive, send):
            await receive()
            with pytest.raises(Problem) as refused:
                await receive()
            assert refused.value.status == 408

        async def nothing(message):
            pass

        began = time.monotonic()
        part = {"type": "http.request", "body": b"x", "more_body": True}
        scope = self.through(app, Limits(seconds=0.2), [part], nothing)
        assert began + 0.2 <= scope["state"]["deadline"] <= time.monotonic()


def test_a_question_that_runs_out_of_time_costs_its_neighbours_nothing():
    async def compute(questions):
        await asyncio.sleep(0.3)
        return [Answer(question.photo_id.encode()) for question in questions]

    async def wanted():
        return False

    async def ask():
        queue = Queue(None, "", Limits(), Counters())
        queue.description, queue._compute = {}, compute
        asked = [
            queue.ask(Question(name, None, deadline=time.monotonic() + seconds), wanted)
            for name, seconds in (("hurried", 0.1), ("patient", 5), ("patient too", 5))
        ]
        return await asyncio.gather(*asked, return_exceptions=True)

    hurried, *patient = asyncio.run(asyncio.wait_for(ask(), 10))
    assert hurried.status == 504
    assert [answer.content for answer in patient] == [b"patient", b"patient too"]
