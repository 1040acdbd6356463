"""The server from outside: a real one, on a real port."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import inspect
import io
import json
import re
import socket
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from local_server import SEGMENT, as_form, as_json, photo, post, problem
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from refseg.cli import main
from refseg.errors import RefsegError
from refseg.segmenter import load
from refseg.serve import Limits
from refseg.serve.worker import Question


def masks(response):
    assert response.status_code == 200, response.text
    return [coco_mask.decode(result["rle"]).astype(bool) for result in response.json()["results"]]


@pytest.fixture(scope="module")
def segmenter(tiny_model):
    return load(tiny_model, device="cpu")


class TestAnswers:
    def test_is_what_the_library_says(self, server, segmenter):
        content, expressions = photo(1), ["the dog", "a blue zebra", "the red bag on the left"]
        response = as_form(server, content, expressions)
        body = response.json()
        for result, mine in zip(body["results"], segmenter(content, expressions), strict=True):
            assert result == mine.to_dict()
        assert body["results"][1]["unknown_words"] == ["zebra"]
        assert (body["model"], body["size"]) == ("tiny", [48, 40])
        assert body["photo_id"] == hashlib.sha256(content).hexdigest()

    def test_form_and_json_agree(self, server):
        content = photo(2)
        form = as_form(server, content, ["the dog"]).json()["results"]
        text = base64.b64encode(content).decode()
        assert as_json(server, photo=text, expressions=["the dog"]).json()["results"] == form
        assert as_json(server, photo=f"data:image/png;base64,{text}", expressions="the dog").json()["results"] == form

    def test_png_and_polygons_are_the_same_mask(self, server):
        content = photo(3)
        (rle,) = masks(as_form(server, content, ["the dog"]))
        (png,) = as_form(server, content, ["the dog"], format="png").json()["results"]
        assert "rle" not in png
        assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(png["png"])))) == rle).all()
        (polygons,) = as_form(server, content, ["the dog"], format="polygons").json()["results"]
        drawn = np.zeros_like(rle)
        for ring in polygons["polygons"]:
            points = np.array(ring).reshape(-1, 2)
            shape = Image.new("1", rle.shape[::-1])
            scaled = Image.new("L", (rle.shape[1] * 4, rle.shape[0] * 4))
            ImageDraw.Draw(scaled).polygon([(4 * x - 0.5, 4 * y - 0.5) for x, y in points], fill=1)
            shape = np.asarray(scaled)[2::4, 2::4].astype(bool)
            drawn ^= shape
        assert (drawn == rle).all()

    def test_overlay(self, server):
        content = photo(4)
        accept = {"Accept": "image/png"}
        response = post(server, {"expressions": ["the dog", "a cup"]}, {"photo": content}, headers=accept)
        assert response.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(response.content)).size >= (40, 48)

    def test_attention_is_the_library_s_scaled(self, server, segmenter):
        content = photo(7)
        text = base64.b64encode(content).decode()
        words = as_json(server, "/v1/attention", photo=text, expression="The zebra, left").json()["words"]
        found = segmenter.word_attention(segmenter.encode(content), "The zebra, left")
        assert [(w["word"], w["unknown"]) for w in words] == [("the", False), ("zebra", True), ("left", False)]
        assert [word for word, _ in found] == ["the", "zebra", "left"]
        for said, (_, shares) in zip(words, found, strict=True):
            scaled = (shares - shares.min()) / (shares.max() - shares.min())
            np.testing.assert_allclose(said["map"], scaled, atol=1e-3)

    def test_the_photograph_as_displayed(self, server):
        stored = Image.open(io.BytesIO(photo(8)))
        turned = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 3
        stored.save(turned, "TIFF", exif=exif)
        response = post(server, files={"photo": turned.getvalue()}, path="/v1/photos", headers={"Accept": "image/png"})
        upright = stored.transpose(Image.Transpose.ROTATE_180)
        assert Image.open(io.BytesIO(response.content)).tobytes() == upright.tobytes()

    def test_threshold_changes_the_mask(self, server):
        content = photo(5)
        small, large = (masks(as_form(server, content, ["the dog"], threshold=t))[0] for t in ("0.9", "0.1"))
        assert small.sum() < large.sum() and (large | ~small).all()

    def test_orientation_is_as_displayed(self, server):
        stored = Image.open(io.BytesIO(photo(6)))
        turned = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        stored.save(turned, "JPEG", exif=exif)
        assert as_form(server, turned.getvalue(), ["the dog"]).json()["size"] == [40, 48]


class TestCache:
    def test_second_sentence_costs_only_itself(self, server):
        content = photo(10)
        first = as_form(server, content, ["the dog"]).json()
        second = as_form(server, content, ["a blue cup"]).json()
        assert (first["cached"], second["cached"]) == (False, True)
        assert first["timings"]["encode"] > 0 == second["timings"]["encode"]
        again = as_json(server, photo_id=first["photo_id"], expressions=["the dog"]).json()
        assert again["results"] == first["results"]

    def test_encoded_ahead(self, server):
        ahead = post(server, files={"photo": photo(11)}, path="/v1/photos").json()
        assert ahead["size"] == [48, 40] and not ahead["cached"]
        assert as_json(server, photo_id=ahead["photo_id"], expressions=["dog"]).json()["cached"]

    def test_unknown_id(self, server):
        assert "send it again" in problem(as_json(server, photo_id="0" * 64, expressions=["dog"]), 404)

    def test_concurrent_first_requests_encode_once(self, server):
        content = photo(12)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: as_form(server, content, [f"the dog {n}"]).json(), range(8)))
        assert [answer["cached"] for answer in answers].count(False) == 1

    def test_is_bounded_by_count_and_bytes(self, tiny_model):
        from refseg.serve.worker import LoadedModel

        model = LoadedModel(load(tiny_model, device="cpu"), "tiny", Limits(cached_photos=3))
        for seed in range(5):
            model.turn(Question(str(seed), photo(seed)))
            model.turn(Question("0", photo(0)))  # used often, kept
        assert list(model.held) == ["3", "4", "0"] or list(model.held) == ["4", "3", "0"]
        one = model.filled // 3
        model.limits = Limits(cached_bytes=2 * one)
        model.turn(Question("6", photo(6)))
        assert len(model.held) == 2 and model.filled <= 2 * one
        model.limits = Limits(cached_bytes=1)
        model.turn(Question("7", photo(7)))
        assert "7" not in model.held


class TestBatches:
    def test_each_gets_what_it_gets_alone(self, server):
        asked = [
            (photo(seed), f"{word} number {seed}") for seed in (20, 21, 22) for word in ("the dog", "a cup", "bag")
        ]

        def ask(pair):
            (result,) = as_form(server, pair[0], [pair[1]]).json()["results"]
            return result

        alone = [ask(pair) for pair in asked]
        before = batches(server)
        with ThreadPoolExecutor(18) as pool:
            together = list(pool.map(ask, asked * 4))
        assert together == alone * 4
        computed, number = (now - then for now, then in zip(batches(server), before, strict=True))
        assert computed == 36 and number < 36, "some were computed together"

    def test_one_bad_question_leaves_the_others_alone(self, tiny_model):
        from refseg.serve import worker

        worker._model = worker.LoadedModel(load(tiny_model, device="cpu"), "tiny", Limits())
        good = worker.Question("a", photo(30), ("the dog",))
        bad = [
            worker.Question("a", photo(30), ("the dog", " ")),
            worker.Question("b", b"not a photograph", ("the dog",)),
            worker.Question("c", None, ("the dog",)),
        ]
        replies, _ = worker.answer([good, *bad, good])
        worker._model = None
        assert [getattr(reply, "status", 200) for reply in replies] == [200, 422, 422, 404, 200]
        assert json.loads(replies[0].content)["results"] == json.loads(replies[4].content)["results"]


def batches(server):
    """Requests computed, and the number of batches."""
    text = httpx.get(f"{server}/metrics").text
    return [float(re.search(rf"refseg_batch_requests_{name} (.*)", text).group(1)) for name in ("sum", "count")]


def png_header(width, height) -> bytes:
    """A PNG of less than 100 bytes that promises width × height pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "empty"),
            (b"<svg xmlns='x'/>", "SVG"),
            (b"GIF89a" + bytes(20), "GIF"),
            (photo()[:200], "damaged"),
            (b"\x00" * 100, "not an image"),
        ],
    )
    def test_file(self, server, content, words):
        assert words in problem(as_form(server, content, ["dog"]), 422)

    @pytest.mark.parametrize("side", [1001, 14_000, 60_000])
    def test_too_many_pixels_by_the_header(self, server, side):
        assert "1 million" in problem(as_form(server, png_header(side, side), ["dog"]), 413)

    @pytest.mark.parametrize("expression", ["", " \t", "\x00", "x" * 1001])
    def test_expression(self, server, expression):
        problem(as_json(server, photo=base64.b64encode(photo()).decode(), expressions=[expression]), 422)

    def test_which_of_several_expressions(self, server):
        assert "expression 2" in problem(as_form(server, photo(), ["dog", " "]), 422)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({}, "expressions"),
            ({"photo": "aGk="}, "expressions"),
            ({"photo": "aGk=", "expressions": []}, "expressions"),
            ({"photo": "aGk=", "expressions": [1]}, "expressions[0]"),
            ({"photo": "aGk=", "expressions": ["a"] * 5}, "limit is 4"),
            ({"expressions": ["a"]}, "photo_id"),
            ({"photo": "aGk=", "photo_id": "0" * 64, "expressions": ["a"]}, "either"),
            ({"photo_id": "../../etc/passwd", "expressions": ["a"]}, "photo_id"),
            ({"photo": "%%%", "expressions": ["a"]}, "base64"),
            ({"photo": "http://example.org/a.jpg", "expressions": ["a"]}, "fetches nothing"),
            ({"photo": "aGk=", "expressions": ["a"], "sentence": 1}, "'sentence'"),
            ({"photo": "aGk=", "expressions": ["a"], "format": "tiff"}, "rle, png, polygons"),
            *[
                ({"photo": "aGk=", "expressions": ["a"], "threshold": t}, "between 0 and 1")
                for t in (-1, 0, 1, 2, "NaN", "high", True, [0.5])
            ],
        ],
    )
    def test_fields(self, server, fields, words):
        assert words in problem(as_json(server, **fields), 422)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b"\xff\xfe",
            b'{"photo": "aGk=", "expressions": ["\\ud800"]}',
            b"[" * 100_000,
            b'{"threshold": 1' + b"0" * 10_000 + b"}",
        ],
    )
    def test_json(self, server, body):
        problem(post(server, content=body, headers={"Content-Type": "application/json"}), 422)

    def test_text_is_only_text(self, server):
        nasty = "<script>alert(1)</script> {0.__class__} %s $(id) ../.. ‮ 👩‍🚀 é"
        (result,) = as_form(server, photo(), [nasty]).json()["results"]
        assert "alert" in result["expression"]

    def test_form(self, server):
        assert "name the field photo" in problem(post(server, {"expressions": "a"}, {"image": photo()}), 422)
        assert "the file itself" in problem(
            post(server, files={"photo": (None, b"x"), "expressions": (None, b"a")}), 422
        )
        headers = {"Content-Type": "multipart/form-data"}
        assert "boundary" in problem(post(server, content=b"x", headers=headers), 400)
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        problem(post(server, content=b"--y\r\n\r\nnonsense", headers=headers), 400)
        files = [("photo", photo(1)), ("photo", photo(2))]
        assert "one" in problem(post(server, {"expressions": "a"}, files), 400)

    def test_content_type(self, server):
        assert "multipart" in problem(post(server, content=b"x", headers={"Content-Type": "text/plain"}), 415)
        assert "multipart" in problem(post(server), 415)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"photo": "aGk="}, "expression"),
            ({"photo": "aGk=", "expression": ["a"]}, "one sentence"),
            ({"photo": "aGk=", "expression": "a", "expressions": ["a"]}, "'expressions'"),
            ({"photo": base64.b64encode(photo()).decode(), "expression": " "}, "empty"),
        ],
    )
    def test_attention(self, server, fields, words):
        assert words in problem(as_json(server, "/v1/attention", **fields), 422)

    def test_method_and_path(self, server):
        assert "GET" in problem(httpx.get(f"{server}{SEGMENT}"), 405)
        assert "/v1/nothing" in problem(httpx.get(f"{server}/v1/nothing"), 404)
        assert problem(httpx.get(f"{server}/page/../../app.py"), 404)
        assert problem(httpx.get(f"{server}/page/%2e%2e/app.py"), 404)
        assert problem(httpx.get(f"{server}/examples/..%2f..%2fapp.py"), 404)

    def test_large_request(self, server):
        big = bytes(2_100_000)
        assert "2 MB" in problem(as_form(server, big, ["dog"]), 413)

        def pieces():
            for _ in range(40):
                yield bytes(100_000)

        headers = {"Content-Type": "application/json"}  # no length is declared
        assert "Content-Length" in problem(post(server, content=pieces(), headers=headers), 411)

    def test_the_next_good_request_is_unaffected(self, server, segmenter):
        (mask,) = masks(as_form(server, photo(1), ["the dog"]))
        assert (mask == segmenter(photo(1), "the dog").mask).all()


class TestState:
    def test_a_model_that_cannot_be_loaded_stops_the_server(self, tmp_path, capfd):
        assert main(["serve", "--model", str(tmp_path), "--port", "0"]) == 2
        assert "lacks config.json" in capfd.readouterr().err

    def test_a_missing_library_is_named(self, monkeypatch, capfd):
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        monkeypatch.delitem(sys.modules, "refseg.serve.connection")
        assert main(["serve"]) == 2
        assert 'pip install "refseg[serve]"' in capfd.readouterr().err

    def test_a_port_in_use(self):
        from refseg.serve.connection import listen

        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RefsegError, match="--port"):
            listen("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(RefsegError, match="--host"):
            listen("nowhere.invalid", 0)

    def test_limits_are_above_zero(self):
        with pytest.raises(RefsegError, match="queue"):
            Limits(queue=0)

    def test_limits_come_from_the_environment_unless_they_are_given(self, monkeypatch):
        monkeypatch.setenv("REFSEG_QUEUE", "3")
        monkeypatch.setenv("REFSEG_SECONDS", "1.5")
        monkeypatch.setenv("REFSEG_WORK", "7e6")
        assert Limits.from_environment() == Limits(queue=3, seconds=1.5, work=7e6)
        assert Limits.from_environment(queue=5, seconds=None) == Limits(queue=5, seconds=1.5, work=7e6)
        for wrong in ("many", "1.5", "0", "-2", ""):
            monkeypatch.setenv("REFSEG_QUEUE", wrong)
            with pytest.raises(RefsegError, match=r"REFSEG_QUEUE|the limit queue is"):
                Limits.from_environment()

    def test_limits_are_documented_with_their_variables_and_defaults(self):
        from refseg.cli.serving import serve

        page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
        rows = {name: row for row in page.splitlines() for name in re.findall(r"`REFSEG_(\w+)`", row)}
        for field in dataclasses.fields(Limits):
            value = field.default / 1_000_000 if field.default >= 1_000_000 else field.default
            assert re.search(rf"\b{value:g}\b", rows[field.name.upper()]), field.name
        flags = re.findall(r"^    (max_upload|max_pixels|queue|seconds): ", inspect.getsource(serve), re.MULTILINE)
        assert len(flags) == 4 and all(f"`--{flag.replace('_', '-')}`" in page for flag in flags)

    @pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), MemoryError()])
    def test_what_runs_out_is_no_fault_of_the_server_s(self, server, monkeypatch, caplog, fault):
        """A photograph above 1 MB is a temporary file while it is read."""

        def write(*_):
            raise fault

        with monkeypatch.context() as patch:
            patch.setattr("starlette.datastructures.UploadFile.write", write)
            response = as_form(server, photo(1), ["the dog"])
        assert "later" in problem(response, 503) and response.headers["retry-after"] == "10"
        (line,) = [record for record in caplog.records if record.name.startswith("refseg")]
        assert line.exc_info is None and "\n" not in line.getMessage()
        assert as_form(server, photo(1), ["the dog"]).status_code == 200

    def test_openapi(self, server):
        schema = httpx.get(f"{server}/openapi.json").json()
        body = schema["paths"][SEGMENT]["post"]["requestBody"]["content"]
        assert set(body) == {"multipart/form-data", "application/json"}
        assert schema["paths"][SEGMENT]["post"]["responses"]["503"]

    def test_metrics(self, server):
        as_form(server, photo(1), ["the dog"])
        httpx.get(f"{server}/v1/{'x' * 100}")
        text = httpx.get(f"{server}/metrics").text
        assert re.search(r'refseg_requests_total\{path="/v1/segment",status="200"\} \d', text)
        assert re.search(r"refseg_cached_photos [1-9]", text) and re.search(r"refseg_cached_bytes [1-9]", text)
        assert "xxx" not in text, "paths that do not exist make no new counters"
        assert re.search(r"refseg_loop_lag_seconds_count [1-9]", text)

    def test_the_page_has_a_photograph_to_try(self, server):
        (example,) = httpx.get(f"{server}/examples").json()
        response = httpx.get(f"{server}/examples/{example['name']}")
        assert response.headers["content-type"] == "image/jpeg" and example["title"]
        results = as_form(server, response.content, example["expressions"][:4]).json()["results"]
        assert [result["expression"] for result in results] == example["expressions"][:4]

    def test_page_takes_nothing_from_another_host(self, server):
        page = httpx.get(server)
        assert "default-src 'self'" in page.headers["content-security-policy"]
        linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(linked) >= 3
        for path in linked:
            assert path.startswith("/") and httpx.get(f"{server}{path}").status_code == 200
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", httpx.get(f"{server}{path}").text)
