"""What holds for every input. More examples under the marker `slow`.

Those of one box stand beside it: run lengths, polygons and boxes in tests/test_segmentation.py, tables in
tests/data/test_table.py, scores against counting pixel by pixel and against the protocols' rules written out, empty
masks among them, in tests/evaluation/test_scores.py, padding and company within the network in
tests/models/shnet/test_network.py, plain pickles in tests/data/published/test_pickles.py, orientations to the pixel in
tests/test_photo.py. Here are those that go through the whole inference path, and crafted run lengths.
"""

from __future__ import annotations

import io
import tempfile

import numpy as np
import pytest
from cases_photographs import ORIENTATION
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.data.table import Row
from refseg.errors import RefsegError
from refseg.masks import decode_mask, encode_mask, run_lengths
from refseg.photo import read_photo
from refseg.segmenter import load

FEW, MANY = 12, 400
WORDS = ("the", "red", "bag", "dog", "left", "of", "zebra", "🐈", "?", ",")
EXPRESSIONS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join)
QUESTIONS = st.lists(EXPRESSIONS, min_size=1, max_size=5, unique=True)
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))


def examples(function):
    """The property twice: over few examples by default, over many under the marker `slow`."""

    @pytest.mark.parametrize("number", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
    def test(number, segmenter):
        settings(max_examples=number, deadline=None, database=None)(
            given(st.data())(lambda data: function(segmenter, data.draw))
        )()

    return test


def photograph(seed: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def bits(answers) -> list[bytes]:
    return [answer.mask.tobytes() for answer in answers]


@examples
def test_an_answer_depends_on_neither_padding_nor_company(segmenter, draw):
    photo, asked = photograph(draw(SEEDS), draw(SIZES)), draw(QUESTIONS)
    encoded = segmenter.encode(photo)
    together = segmenter.segment(encoded, asked, batch_size=draw(st.integers(1, 6)))
    for answer, expression in zip(together, asked, strict=True):
        (alone,) = segmenter.segment(encoded, [expression])
        assert answer.mask.tobytes() == alone.mask.tobytes()
        assert answer.score == pytest.approx(alone.score, abs=1e-5)
        assert (answer.unknown_words, answer.truncated) == (alone.unknown_words, alone.truncated)


@examples
def test_an_encoded_photograph_answers_as_a_fresh_one(segmenter, draw):
    photo, asked = photograph(draw(SEEDS), draw(SIZES)), draw(QUESTIONS)
    encoded = segmenter.encode(photo)
    segmenter.segment(encoded, draw(QUESTIONS))  # whatever was asked before
    assert bits(segmenter.segment(encoded, asked)) == bits(segmenter(photo, asked))


@examples
def test_permuted_requests_give_permuted_answers(segmenter, draw):
    encoded, asked = segmenter.encode(photograph(draw(SEEDS), (40, 56))), draw(QUESTIONS)
    order = draw(st.permutations(range(len(asked))))
    answers, permuted = (segmenter.segment(encoded, each) for each in (asked, [asked[n] for n in order]))
    assert bits(permuted) == [bits(answers)[n] for n in order]


@examples
def test_a_mask_has_the_shape_of_the_photograph_as_displayed(segmenter, draw):
    upright, orientation = photograph(draw(SEEDS), draw(SIZES)), draw(st.integers(1, 8))
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180}
    stored = Image.fromarray(upright)
    if orientation in back:
        stored = stored.transpose(back[orientation])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    stored.save(file, draw(st.sampled_from(["PNG", "TIFF"])), exif=exif)
    answer = segmenter(file.getvalue(), "the dog")
    assert answer.mask.shape == (answer.photo.height, answer.photo.width) == read_photo(file.getvalue()).size[::-1]
    if orientation in back or orientation == 1:
        assert answer.mask.tobytes() == segmenter(upright, "the dog").mask.tobytes()
    elif orientation >= 5:
        assert answer.mask.shape == stored.size


@examples
def test_a_saved_model_answers_with_the_same_bits(segmenter, draw):
    other = saved(segmenter)
    photo, asked = photograph(draw(SEEDS), draw(SIZES)), draw(QUESTIONS)
    first, second = segmenter(photo, asked), other(photo, asked)
    assert bits(first) == bits(second)
    assert [answer.to_dict() for answer in first] == [answer.to_dict() for answer in second]


_SAVED: dict[int, object] = {}


def saved(segmenter):
    """What was saved and loaded again, once for all examples."""
    if id(segmenter) not in _SAVED:
        with tempfile.TemporaryDirectory() as folder:
            segmenter.save_pretrained(folder)
            _SAVED[id(segmenter)] = load(folder, device="cpu")
    return _SAVED[id(segmenter)]


@examples
def test_run_lengths_are_pycocotools_s_both_ways(_, draw):
    density = draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    mask = np.random.default_rng(draw(SEEDS)).random(draw(st.tuples(st.integers(0, 70), st.integers(0, 70)))) < density
    theirs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert encode_mask(mask) == theirs["counts"].decode()
    np.testing.assert_array_equal(decode_mask(theirs["counts"].decode(), *mask.shape), coco_mask.decode(theirs))
    np.testing.assert_array_equal(decode_mask(encode_mask(mask), *mask.shape), mask)
    runs = run_lengths(theirs["counts"])
    np.testing.assert_array_equal(np.repeat(np.arange(len(runs)) % 2, runs), mask.ravel("F"))


@examples
def test_crafted_run_lengths_are_refused_or_fill_the_mask(_, draw):
    """pycocotools alone would read past its memory, or leave some of the mask to chance."""
    counts = draw(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=20) | st.text(max_size=8))
    height, width = (draw(st.integers(-2, 9) | st.sampled_from([2**31, 2**32, 2**63])) for _ in range(2))
    row = Row("a.png", 1, height, width, "dog", counts)
    try:
        mask = row.mask()
    except RefsegError as fault:
        assert "write the table again" in str(fault)
    else:
        runs = run_lengths(counts.encode())
        assert mask.shape == (height, width) and mask.size == runs.sum() and mask.sum() == runs[1::2].sum()
        np.testing.assert_array_equal(decode_mask(encode_mask(mask), height, width), mask)


@pytest.mark.parametrize(
    ("counts", "height", "width"),
    [
        ("1", 2, 3),
        ("", 2, 3),
        ("44", 2, 3),
        ("o" * 30, 2, 3),
        ("o", 2, 3),
        ("é", 2, 3),
        ("6\x00", 2, 3),
        ("1", 2**31, 2**31),
        ("1", 2**32, 2**32),
        ("1", -1, -1),
        ("6", 2.0, 3),
        ("6", "2", 3),
        (None, 2, 3),
        (6, 2, 3),
    ],
)
def test_run_lengths_that_do_not_fill_the_mask(counts, height, width):
    with pytest.raises(RefsegError, match="write the table again"):
        Row("a.png", 1, height, width, "dog", counts).mask()
