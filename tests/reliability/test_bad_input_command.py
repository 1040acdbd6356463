"""The same photographs, expressions and thresholds through the command: one line, and the rest of the work is done."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
from cases_checkpoints import CHECKPOINTS
from cases_photographs import EITHER, PHOTOGRAPHS, SIZE, noise
from cases_words import EXPRESSIONS, THRESHOLDS, Refusal
from conftest import in_time, sentence

from refseg.cli import main

HERE = {name: case for name, case in PHOTOGRAPHS.items() if not case.large}


def command(*arguments) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["segment", *map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    file = tmp_path_factory.mktemp("good") / "good.png"
    file.write_bytes(noise())
    return file


@pytest.fixture(scope="module")
def results(tiny_model, good, tmp_path_factory):
    """All photographs in one call, a good one last: the record or the refusal of each, and the exit code."""
    folder = tmp_path_factory.mktemp("photographs")
    files = {name: folder / f"{number:03}.jpg" for number, name in enumerate(HERE)}
    for name, file in files.items():
        file.write_bytes(HERE[name].make())
    code, out, err = command(*files.values(), good, "-e", "the dog", "--json", "--model", tiny_model)
    records = {record["photo"]: record for record in map(json.loads, out.splitlines())}
    for line in err.splitlines():
        assert line.startswith("refseg: ") and "Traceback" not in line
        records[line.split()[1]] = line
    assert len(records) == len(files) + 1
    return {name: records[str(file)] for name, file in files.items()}, records[str(good)], code


@pytest.mark.parametrize("name", HERE)
def test_photograph(results, name):
    found, expected = results[0][name], HERE[name].expected
    if isinstance(expected, tuple):
        assert tuple(found["size"]) == expected
    elif expected == EITHER:
        assert isinstance(found, dict) or sentence(found)
    else:
        assert expected in sentence(found)


def test_the_good_photograph_among_them_is_answered_as_alone(results, segmenter):
    _, record, code = results
    answer = segmenter(noise(), "the dog").to_dict()
    assert {key: record[key] for key in answer} == answer and code == 1


def test_expressions_that_are_answered(tiny_model, good, segmenter):
    asked = {text for text, expected in EXPRESSIONS.values() if not isinstance(expected, Refusal)}
    options = [part for text in sorted(asked) for part in ("-e", text)]
    code, out, err = command(good, *options, "--json", "--model", tiny_model)
    records = list(map(json.loads, out.splitlines()))
    read = list(dict.fromkeys(answer.expression for answer in segmenter(noise(), sorted(asked))))
    assert (code, err) == (0, "")
    assert list(dict.fromkeys(record["expression"] for record in records)) == read
    for record in records:
        assert record["rle"] == segmenter(noise(), record["expression"]).to_rle()


def test_answers_are_written_whatever_was_asked(tiny_model, good, tmp_path):
    asked = sorted({text for text, expected in EXPRESSIONS.values() if not isinstance(expected, Refusal)})
    options = [part for text in asked for part in ("-e", text)]
    code, _, err = command(good, *options, "--out", tmp_path / "out", "--model", tiny_model)
    assert (code, err) == (0, "")
    assert len(list((tmp_path / "out").iterdir())) >= len(asked) - 5, "those that read alike share a name"


@pytest.mark.parametrize(
    "name", [name for name, (text, expected) in EXPRESSIONS.items() if text and isinstance(expected, Refusal)]
)
def test_expression_that_is_refused(good, name):
    text, expected = EXPRESSIONS[name]
    with in_time():
        code, out, err = command(good, "-e", "the dog", "-e", text)
    assert (code, out) == (2, "")
    assert expected.words in sentence(err.removesuffix("\n"))


@pytest.mark.parametrize("typed", [typed for typed, decides in THRESHOLDS.items() if not decides][::5])
def test_threshold_that_is_refused(tiny_model, good, typed):
    code, out, err = command(good, "-e", "the dog", f"--threshold={typed}", "--model", tiny_model, "--json")
    assert (code, out) == (2, "") and "Traceback" not in err
    assert re.search("between 0 and 1|valid (number|float)", err)


@pytest.mark.parametrize("name", [*CHECKPOINTS][::15])
def test_checkpoint(checkpoint, good, name):
    damage, words = CHECKPOINTS[name]
    damage(checkpoint)
    code, out, err = command(good, "-e", "the dog", "--model", checkpoint, "--json")
    assert (code, out) == (2, "")
    assert words in sentence(err.removesuffix("\n"))


@pytest.mark.slow
def test_a_process_of_its_own(tiny_model, good, tmp_path):
    """What only a real process shows: nothing on the streams but what the command says, and its exit code."""
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(HERE["PNG cut to 25/50"].make())
    line = [sys.executable, "-m", "refseg", "segment", bad, good, "-e", "the dog", "--json", "--model", tiny_model]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "damaged" in sentence(done.stderr.removesuffix("\n"))
    (record,) = map(json.loads, done.stdout.splitlines())
    assert tuple(record["size"]) == SIZE
