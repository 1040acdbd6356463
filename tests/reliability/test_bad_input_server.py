"""The same photographs, expressions and thresholds through the server, and requests that are none."""

from __future__ import annotations

import base64
import json
import socket
import time

import httpx
import numpy as np
import pytest
from cases_http import BODIES, BYTES, FORMS, GONE, REQUESTS
from cases_photographs import EITHER, PHOTOGRAPHS, SIZE, noise
from cases_words import EXPRESSIONS, THRESHOLDS, Refusal
from conftest import LONGEST, sentence
from local_server import serving

SEGMENT = "/v1/segment"
PATIENCE = 6 * LONGEST
"""Seconds; a row takes hundredths of one, but other work on the machine must not fail a test."""


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    options = {"label_studio": tmp_path_factory.mktemp("photos")}
    bounds = {"seconds": 60, "expressions": 4, "upload_bytes": 2_000_000, "pixels": 1_000_000}
    with serving(tiny_model, options, **bounds) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(autouse=True, scope="module")
def alive(server):
    """Whatever the rows below do, one process answered all of them."""
    yield
    assert "refseg_workers_replaced_total 0.0" in httpx.get(f"{server}/metrics", timeout=PATIENCE).text


def ask(client, photo: bytes, **fields) -> httpx.Response:
    return client.post(SEGMENT, json={"photo": base64.b64encode(photo).decode(), **fields})


@pytest.fixture(scope="module")
def answer(segmenter):
    return segmenter(noise(), "the dog").to_dict()


@pytest.fixture
def unaffected(client, answer):
    yield
    assert ask(client, noise(), expressions=["the dog"]).json()["results"] == [answer]


def problem(response, status: int) -> str:
    """The detail of a refusal, after the rules that hold for all of them."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    details = response.json()
    assert details["status"] == status and details["type"] == "about:blank" and details["title"]
    assert ";" in details["detail"], "no cure"
    return sentence(details["detail"])


@pytest.mark.parametrize("name", [name for name, case in PHOTOGRAPHS.items() if not case.large])
def test_photograph(client, unaffected, name):
    case = PHOTOGRAPHS[name]
    files = {"photo": ("photo.jpg", case.make())}
    response = client.post(SEGMENT, data={"expressions": "the dog"}, files=files)
    if isinstance(case.expected, tuple) or (case.expected == EITHER and response.status_code == 200):
        (result,) = response.json()["results"]
        assert case.expected in (EITHER, tuple(result["size"]))
    else:
        said = problem(response, case.status if case.expected != EITHER else response.status_code)
        assert case.expected in (EITHER, *[case.expected] * (case.expected in said))
        assert response.status_code in (413, 422)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expression(client, unaffected, name):
    text, expected = EXPRESSIONS[name]
    if isinstance(expected, Refusal):
        photo = base64.b64encode(noise()).decode()
        body = json.dumps({"photo": photo, "expressions": ["the dog", text]})  # surrogates as escapes
        said = problem(client.post(SEGMENT, content=body, headers={"Content-Type": "application/json"}), 422)
        assert expected.words in said or "surrogate" in said or "hex escape" in said
    else:
        (result,) = ask(client, noise(), expressions=text).json()["results"]
        assert result["expression"] == (text if expected is None else expected)


@pytest.mark.parametrize("typed", THRESHOLDS)
def test_threshold(client, typed):
    response = client.post(SEGMENT, data={"expressions": "the dog", "threshold": typed}, files={"photo": noise()})
    if THRESHOLDS[typed]:
        assert response.status_code == 200
    else:
        assert "threshold" in problem(response, 422)


@pytest.mark.parametrize("name", REQUESTS)
def test_request(client, unaffected, name):
    sent = REQUESTS[name]
    headers = {key: value.encode("latin-1") for key, value in sent.headers.items()}
    response = client.request(sent.method, sent.path, content=sent.body, headers=headers)
    if sent.status == 200:
        assert tuple(response.json()["size"]) == SIZE
    else:
        assert sent.words in problem(response, sent.status)


@pytest.mark.parametrize("route", ["setup", "predict", "webhook"])
@pytest.mark.parametrize("name", BODIES)
def test_request_in_place_of_label_studio_s(client, name, route):
    sent = BODIES[name]
    response = client.post(f"/label-studio/{route}", content=sent.body, headers=sent.headers)
    if response.status_code == 200:
        assert isinstance(response.json(), dict) and route != "predict"
    else:
        problem(response, 413 if sent.status == 413 else 422)


@pytest.mark.parametrize("name", BYTES)
def test_bytes_on_the_connection(server, unaffected, name):
    sent, status = BYTES[name]
    with connected(server) as connection:
        connection.sendall(sent)
        assert connection.recv(4096).split()[1] == status


@pytest.mark.parametrize("name", GONE)
def test_a_client_that_hangs_up(server, client, unaffected, name):
    for _ in range(3):
        with connected(server) as connection:
            connection.sendall(GONE[name])
    deadline = time.monotonic() + PATIENCE
    while "refseg_requests_inside 0.0" not in client.get("/metrics").text:
        assert time.monotonic() < deadline, "it holds a place"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_slow_upload_is_given_up(tiny_model):
    """Three at a time, a few bytes a second each; a good request passes them."""
    with serving(tiny_model, seconds=4) as (server, _), httpx.Client(base_url=server, timeout=PATIENCE) as client:
        connections = [connected(server) for _ in range(3)]
        for connection in connections:
            connection.sendall(GONE["within a form"])
        assert ask(client, noise(), expressions=["the dog"]).status_code == 200
        for _ in range(10):
            for connection in connections:
                connection.sendall(b"x")
            time.sleep(0.3)
        for connection in connections:
            with connection:
                assert connection.recv(4096).split()[1] == b"408"


def connected(server) -> socket.socket:
    host, port = server.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


@pytest.mark.parametrize("form", ["rle", "png", "polygons", "overlay"])
@pytest.mark.parametrize("name", ["1×1", "1×10000", "10000×1", "F in TIFF", "LA in PNG"])
def test_every_form_of_an_answer(client, name, form):
    headers = {"Accept": "image/png"} if form == "overlay" else {}
    fields = {} if form == "overlay" else {"format": form}
    files = {"photo": PHOTOGRAPHS[name].make()}
    response = client.post(
        SEGMENT, data={"expressions": ["‮ 👩‍🚀 dog", "x" * 1000], **fields}, files=files, headers=headers
    )
    assert response.status_code == 200


@pytest.mark.slow
def test_8k(tiny_model, segmenter):
    case = PHOTOGRAPHS["8K"]
    with serving(tiny_model) as (address, _), httpx.Client(base_url=address, timeout=60) as client:
        (result,) = ask(client, case.make(), expressions=["the dog"]).json()["results"]
        assert tuple(result["size"]) == case.expected
        assert result == segmenter(case.make(), "the dog").to_dict()


def test_the_rows_of_the_table_are_requests():
    assert len(REQUESTS) > 100 and FORMS["a good form"].status == 200
    assert np.unique([case.status for case in REQUESTS.values()]).tolist() == [200, 400, 404, 405, 413, 415, 422]
