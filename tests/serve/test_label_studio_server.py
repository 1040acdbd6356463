"""The server as Label Studio talks to it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from functools import partial

import httpx
import numpy as np
import pytest
from PIL import Image

from refseg.annotation.label_studio import encode_brush, read_config
from refseg.errors import RefsegError
from refseg.segmenter import load
from refseg.serve import Limits, create_app
from refseg.serve.connection import http_server, listen
from refseg.serve.problems import Problem
from refseg.serve.worker import Answer

BRUSH = """<View><Image name="photo" value="$image"/><BrushLabels name="what" toName="photo">
<Label value="animal" expression="the dog"/><Label value="a blue cup"/></BrushLabels></View>"""
POLYGON = BRUSH.replace("BrushLabels", "PolygonLabels")


@pytest.fixture(scope="module")
def segmenter(tiny_model):
    return load(tiny_model, device="cpu")


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 48)).save(tmp_path / "a.png")
    Image.fromarray(pixels[::-1]).resize((50, 40)).save(tmp_path / "b.png")
    return tmp_path


@pytest.fixture
def ask(tiny_model, segmenter, folder):
    """Sends one request to the server, whose model computes here and not in a process of its own."""
    limits = Limits(expressions=3, upload_bytes=150_000, tasks=7)
    app = create_app(partial(load, tiny_model), limits, name="tiny", label_studio=folder)
    queue = app.state.queue

    async def ready():
        return send.ready

    async def answer(question, *_):
        try:
            results = [result.to_dict() for result in segmenter(question.photo, question.expressions)]
            if question.form == "polygons":
                for result, segmentation in zip(results, segmenter(question.photo, question.expressions), strict=True):
                    del result["rle"]
                    result["polygons"] = segmentation.to_polygons()
        except RefsegError as fault:
            raise Problem(422, str(fault)) from None
        return Answer(json.dumps({"results": results}).encode())

    queue.ask, queue.ready = answer, ready

    def send(path, body=None, method="POST"):
        async def call():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, f"/label-studio/{path}", json=body)

        return asyncio.run(call())

    send.ready = True
    return send


def predict(ask, *photos, config=BRUSH, **more):
    tasks = [{"id": number, "data": {"image": photo}} for number, photo in enumerate(photos)]
    return ask("predict", {"tasks": tasks, "label_config": config, "project": "1.2", **more})


def refusal(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert ";" in response.json()["detail"]
    return response.json()["detail"]


def test_connecting(ask):
    health = ask("health", method="GET")
    assert (health.status_code, health.json()["status"]) == (200, "UP")
    setup = ask("setup", {"project": "1.2", "schema": BRUSH, "hostname": "http://x", "access_token": "secret"})
    assert setup.json() == {"model_version": "tiny"}
    assert ask("versions", method="GET").json() == {"versions": ["tiny"]}
    assert "takes no masks" in refusal(ask("setup", {"schema": "<View/>"}), 422)
    ask.ready = False
    assert "being loaded" in refusal(ask("health", method="GET"), 503)


def test_events_are_welcome_and_training_is_not(ask):
    assert ask("webhook", {"action": "ANNOTATION_CREATED", "annotation": {}}).status_code == 200
    assert "refseg train" in refusal(ask("webhook", {"action": "START_TRAINING"}), 501)


def test_brush_is_the_library_s_mask(ask, segmenter, folder):
    body = predict(ask, "/data/local-files/?d=a.png", "b.png").json()
    assert body["model_version"] == "tiny" and len(body["results"]) == 2
    for name, prediction in zip(("a.png", "b.png"), body["results"], strict=True):
        results = [result for result in segmenter(folder / name, ["the dog", "a blue cup"]) if result.mask.any()]
        assert len(results) == len(prediction["result"]) > 0
        for region, result in zip(prediction["result"], results, strict=True):
            label = "animal" if result.expression == "the dog" else "a blue cup"
            assert region["value"] == {"format": "rle", "rle": encode_brush(result.mask), "brushlabels": [label]}
            assert (region["original_height"], region["original_width"]) == result.mask.shape
            assert (region["from_name"], region["to_name"], region["type"]) == ("what", "photo", "brushlabels")
            assert region["score"] == round(result.score, 4)
        assert prediction["score"] == pytest.approx(np.mean([region["score"] for region in prediction["result"]]))


def test_polygons(ask, segmenter, folder):
    (prediction,) = predict(ask, "a.png", config=POLYGON).json()["results"]
    assert prediction["result"]
    for region in prediction["result"]:
        assert region["type"] == "polygonlabels" and region["value"]["polygonlabels"][0] in ("animal", "a blue cup")
        assert all(0 <= part <= 100 for point in region["value"]["points"] for part in point)


def test_a_photograph_inside_the_task(ask, folder):
    text = base64.b64encode((folder / "a.png").read_bytes()).decode()
    inside = predict(ask, f"data:image/png;base64,{text}").json()
    assert inside == predict(ask, "a.png").json()


def test_a_typed_sentence_stands_for_the_labels_own(ask, segmenter, folder):
    context = {"result": [{"type": "textarea", "value": {"text": ["the small white cat"]}}]}
    (prediction,) = predict(ask, "a.png", params={"context": context}).json()["results"]
    result = segmenter(folder / "a.png", "the small white cat")
    (region,) = prediction["result"]
    assert region["value"] == {"format": "rle", "rle": encode_brush(result.mask), "brushlabels": ["animal"]}
    assert predict(ask, "a.png", params={"context": None, "login": "x"}).json() == predict(ask, "a.png").json()


def test_one_bad_task_leaves_the_others_alone(ask, folder, caplog):
    (folder / "bad.png").write_bytes(b"no image")
    bad = ["missing.png", "bad.png", "http://example.org/a.png", "data:image/png;base64,!", "../a.png"]
    results = predict(ask, *bad, "a.png").json()["results"]
    assert [bool(each["result"]) for each in results] == [False] * 5 + [True]
    assert len(caplog.records) == 5


@pytest.mark.parametrize(
    ("photo", "status", "cure"),
    [
        ("missing.png", 422, "no such photograph"),
        ("../secret.png", 422, "no such photograph"),
        ("https://example.org/a.png", 422, "nothing is fetched"),
        ("data:image/png;base64,!", 422, "not base64"),
        (None, 422, "look at its value"),
        ("large.png", 413, "--max-upload"),
    ],
)
def test_if_all_are_bad_the_request_is_refused(ask, folder, photo, status, cure):
    (folder / "large.png").write_bytes(b"\0" * 200_000)
    assert cure in refusal(predict(ask, photo), status)


@pytest.mark.parametrize(
    "body", [None, [], {}, {"tasks": 3, "label_config": BRUSH}, {"tasks": [{}], "label_config": ""}]
)
def test_other_requests_are_refused(ask, body):
    refusal(ask("predict", body), 422)


def test_no_tasks_no_results_and_too_many_labels_are_refused(ask):
    assert predict(ask).json()["results"] == []
    many = BRUSH.replace("</BrushLabels>", "".join(f'<Label value="x{n}"/>' for n in range(9)) + "</BrushLabels>")
    assert "the limit is 3" in refusal(predict(ask, "a.png", config=many), 422)


def nested(count, name="View"):
    return BRUSH.replace("<View>", f"<{name}>" * count).replace("</View>", f"</{name}>" * count)


@pytest.mark.parametrize(
    ("config", "cure"),
    [
        (nested(51), "nests more than 50 tags"),
        (nested(5_000, "BrushLabels"), "100,000"),
        (BRUSH.ljust(100_001), "100,000"),
        (BRUSH.replace("</View>", '<PolygonLabels toName="photo"/>' * 10 + "</View>"), "more than 10 tags for masks"),
        ('<!DOCTYPE x [<!ENTITY y "z">]>' + BRUSH, "document type"),
        ("<View>", "not XML"),
        ("\0", "not XML"),
        ("<View>" + "</View>" * 2, "not XML"),
    ],
)
def test_configurations_are_bounded(ask, config, cure):
    """210 kB of nested tags held up the server for 35 seconds."""
    assert cure in refusal(ask("setup", {"schema": config}), 422)
    assert cure in refusal(predict(ask, "a.png", config=config), 422)


def test_nested_tags_up_to_the_bound_are_read(ask):
    assert predict(ask, "a.png", config=nested(48)).json() == predict(ask, "a.png").json()


def test_configurations_are_not_read_on_the_event_loop(ask, monkeypatch):
    threads = []

    def read(config):
        threads.append(threading.current_thread())
        return read_config(config)

    monkeypatch.setattr("refseg.serve.label_studio.read_config", read)
    assert ask("setup", {"schema": BRUSH}).status_code == 200 and predict(ask, "a.png").status_code == 200
    assert len(threads) == 2 and threading.main_thread() not in threads


def test_tasks_are_bounded(ask):
    """5,000 in one call went past the queue's bound."""
    assert len(predict(ask, *["a.png"] * 7).json()["results"]) == 7
    assert "there are 8 tasks and the limit is 7" in refusal(predict(ask, *["a.png"] * 8), 422)


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "textarea", "value": {"text": 7}},
        {"type": "textarea", "value": {"text": [None, 7, " ", {}]}},
        {"type": "textarea", "value": "the dog"},
        {"type": "textarea", "value": None},
        {"type": "textarea"},
        {"type": ["textarea"]},
        {},
    ],
)
def test_contexts_without_a_sentence_change_nothing(ask, entry):
    assert predict(ask, "a.png", params={"context": {"result": [entry]}}).json() == predict(ask, "a.png").json()


@pytest.mark.slow
def test_a_real_server(tiny_model, folder):
    app = create_app(partial(load, tiny_model, device="cpu"), Limits(seconds=120), name="tiny", label_studio=folder)
    listening = listen("127.0.0.1", 0)
    server = http_server(app, 10)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/label-studio"
    try:
        deadline = time.monotonic() + 180
        while httpx.get(f"{address}/health", timeout=60).status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.2)
        for config in (BRUSH, POLYGON):
            body = {"tasks": [{"data": {"image": "a.png"}}] * 20, "label_config": config}
            answer = httpx.post(f"{address}/predict", json=body, timeout=120)
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["results"]) == 20 and answer.json()["results"][19]["result"]
        content = io.BytesIO()
        Image.new("RGB", (64, 64)).save(content, "PNG")
        files = {"photo": content.getvalue()}
        other = address.replace("label-studio", "v1/segment")
        page = httpx.post(other, data={"expressions": "the dog"}, files=files, timeout=120)
        assert page.status_code == 200, "the other routes are as they were"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
