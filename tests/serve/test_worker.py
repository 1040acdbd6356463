"""The model's process on a batch: work is bounded, time that is over costs nothing, masks do not pile up."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from local_server import photo
from PIL import Image

from refseg.segmenter import load
from refseg.serve import Limits, worker
from refseg.serve.problems import Problem
from refseg.serve.worker import Question

SENTENCES = ("the dog", "a blue cup", "the red bag on the left", "the small white cat behind the man") * 6


@pytest.fixture(scope="module")
def segmenter(tiny_model):
    return load(tiny_model, device="cpu")


@pytest.fixture
def ask(segmenter, monkeypatch):
    """Answers questions about photographs of 40×48 pixels; `ask.batches` are the expressions computed together."""

    class Watched:
        def __getattr__(self, name):
            return getattr(segmenter, name)

        def segment(self, encoded, expressions, **options):
            ask.batches.append(len(expressions))
            return segmenter.segment(encoded, expressions, **options)

    def ask(*questions, **limits):
        ask.batches = []
        monkeypatch.setattr(worker, "_model", worker.LoadedModel(Watched(), "tiny", Limits(**limits)))
        return worker.answer(questions)[0]

    return ask


def results(answer):
    return json.loads(answer.content)["results"]


class TestWork:
    @pytest.mark.parametrize(("form", "most"), [("rle", 20), ("png", 13), ("polygons", 6), ("overlay", 4)])
    def test_each_form_has_its_weight(self, ask, form, most):
        work = 40 * 48 * 20
        fits, over = (Question("a", photo(), SENTENCES[:count], form=form) for count in (most, most + 1))
        assert not isinstance(ask(fits, work=work)[0], Problem)
        refused, kept = ask(over, fits, work=work)
        assert refused.status == 413 and f"send at most {most} at once" in refused.detail
        assert not isinstance(kept, Problem) and len(ask.batches) == -(-most // 8)

    def test_a_photograph_that_is_too_large_for_one_expression_is_to_be_scaled(self, ask):
        (refused,) = ask(Question("a", photo(), ("the dog",)), work=1900)
        assert refused.detail.endswith("scale it down first") and ask.batches == []

    def test_a_kept_photograph_is_bounded_alike(self, ask):
        kept, refused = ask(Question("a", photo(), ("the dog",)), Question("a", None, SENTENCES), work=40 * 48 * 19)
        assert not isinstance(kept, Problem) and refused.status == 413

    def test_what_costs_no_pixels_is_not_bounded(self, ask):
        questions = [Question("a", photo(), form="photo"), Question("a", photo(), form="displayed")]
        assert not [answer for answer in ask(*questions, work=1) if isinstance(answer, Problem)]

    def test_the_bound_admits_what_the_page_and_the_documentation_ask(self):
        """32 expressions of a telephone's photograph as run lengths, and the picture of one of 50 megapixels."""
        for size, count, form in ((12_000_000, 32, "rle"), (12_000_000, 6, "overlay"), (50_000_000, 1, "overlay")):
            assert size * count * worker.WEIGHTS[form] <= Limits().work


class TestTime:
    @pytest.fixture(autouse=True)
    def clock(self, monkeypatch, segmenter):
        """Each call of the network takes a second."""
        clock = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=time.perf_counter, now=0.0)
        segment = type(segmenter).segment

        def slow(*arguments, **options):
            clock.now += 1
            return segment(*arguments, **options)

        monkeypatch.setattr(worker, "time", clock)
        monkeypatch.setattr(type(segmenter), "segment", slow)

    def test_a_question_whose_time_is_over_costs_no_more(self, ask):
        (answer,) = ask(Question("a", photo(), SENTENCES, deadline=1.5))
        assert answer.status == 504 and ask.batches == [8, 8]

    def test_its_neighbours_are_answered(self, ask):
        hurried, patient = (Question("a", photo(), SENTENCES[:9], deadline=deadline) for deadline in (0.5, 9))
        alone = results(ask(patient)[0])
        late, answer = ask(hurried, patient)
        assert late.status == 504 and results(answer) == alone
        assert sum(ask.batches) < 18

    def test_nothing_is_encoded_after_the_time(self, ask, monkeypatch, segmenter):
        monkeypatch.setattr(type(segmenter), "encode", lambda *_: pytest.fail("encoded"))
        (answer,) = ask(Question("a", photo(), ("the dog",), deadline=0))
        assert answer.status == 504 and ask.batches == []


@pytest.mark.parametrize("form", ["rle", "png", "polygons"])
def test_masks_do_not_pile_up(ask, monkeypatch, form):
    """Of a large photograph few are in memory at one time, and the answer is the same."""
    question = Question("a", photo(), SENTENCES[:9], form=form)
    together = results(ask(question)[0])
    assert ask.batches == [8, 1]
    for pixels, batches in ((1, [1] * 9), (2 * 40 * 48, [2, 2, 2, 2, 1])):
        monkeypatch.setattr(worker, "_MASK_PIXELS", pixels)
        assert results(ask(question)[0]) == together and ask.batches == batches


PEAK = """
import json, pathlib, re, sys
from PIL import Image
from refseg.segmenter import load
from refseg.serve import Limits, worker
from refseg.serve.worker import Question

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1000

model, photo, count, form = sys.argv[1:]
segmenter = load(model, device="cpu")
segmenter(Image.new("RGB", (64, 64)), "the dog")
worker._model = worker.LoadedModel(segmenter, "tiny", Limits())
sentences = tuple("wide " * 150 + str(number) for number in range(int(count)))
before = peak()
(answer,), _ = worker.answer([Question("a", pathlib.Path(photo).read_bytes(), sentences, form=form)])
print(json.dumps([getattr(answer, "status", 200), peak() - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak of memory")
@pytest.mark.parametrize(
    ("size", "count", "form"),
    [
        ((30_000, 1), 32, "overlay"),
        ((1, 30_000), 32, "overlay"),
        pytest.param((65_535, 700), 1, "overlay", marks=pytest.mark.slow),
        *(pytest.param((7071, 7071), *asked, marks=pytest.mark.slow) for asked in ((1, "overlay"), (8, "rle"))),
        *(pytest.param((7071, 7071), *asked, marks=pytest.mark.slow) for asked in ((2, "polygons"), (5, "png"))),
    ],
)
def test_no_accepted_request_takes_a_gigabyte(tiny_model, tmp_path, size, count, form):
    """A file of 84 bytes took 6.6 GB: its legend was drawn in the photograph's proportions."""
    Image.new("RGB", size, "grey").save(tmp_path / "large.png")
    line = [sys.executable, "-c", PEAK, str(tiny_model), str(tmp_path / "large.png"), str(count), form]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    status, megabytes = json.loads(done.stdout)
    assert status == 200 and megabytes < 800, "with the 160 MB of a process that answers, less than a gigabyte"


@pytest.mark.parametrize("size", [(65_536, 1), (1, 1_000_000)])
def test_a_side_has_a_limit(ask, size):
    content = io.BytesIO()
    Image.new("RGB", size).save(content, "PNG")
    (refused,) = ask(Question("a", content.getvalue(), ("the dog",)))
    assert refused.status == 413 and "crop it" in refused.detail
