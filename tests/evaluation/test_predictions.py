import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refseg.data.table import Row, write_table
from refseg.errors import RefsegError
from refseg.evaluation.predictions import score_predictions
from refseg.evaluation.protocols import GRES, LAVT, PROTOCOLS, SHNET
from refseg.masks import encode_mask

SIZE = (8, 10)


def mask_of(columns, size=SIZE):
    mask = np.zeros(size, dtype=bool)
    mask[:, :columns] = True
    return mask


def rle(columns, size=SIZE):
    return {"size": list(size), "counts": encode_mask(mask_of(columns, size))}


ROWS = [
    Row(Path("x/a.png"), 7, *SIZE, "the bag", encode_mask(mask_of(4))),
    Row(Path("x/a.png"), 7, *SIZE, "the hat", encode_mask(mask_of(5))),
    Row(Path("x/b.png"), 8, *SIZE, "the bag", encode_mask(mask_of(10))),
]


@pytest.fixture
def scored(tmp_path):
    def run(lines, rows=ROWS, **options):
        path = tmp_path / "lavt.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return score_predictions(path, rows, **options)

    return run


def ious(report):
    return [a.pixels.intersection / a.pixels.union for a in report.answers]


def test_rows_by_number_by_file_and_by_id(scored):
    lines = [
        {"row": 2, "rle": rle(5)},
        {"image": "elsewhere/a.png", "expression": "the hat", "rle": rle(5), "score": 0.7},
        {"image": 7, "expression": "the bag", "rle": rle(8)},
    ]
    report = scored(lines, data="d")
    assert ious(report) == [0.5, 1, 0.5]
    assert report.problems == []
    assert report.model == "lavt"
    assert [answer.score for answer in report.answers] == [None, 0.7, None]
    assert report.threshold is None


def test_lines_of_refseg_segment(tmp_path, scored):
    line = {"photo": "x/b.png", "expression": "the bag", "score": 0.5, "box": None, "size": [8, 10], "rle": rle(10)}
    line |= {"unknown_words": [], "truncated": False, "file": None}
    assert ious(scored([line]))[2] == 1


def test_what_is_missing_counts_as_empty_and_is_reported(scored):
    report = scored([{"row": 0, "rle": rle(4)}])
    assert ious(report) == [1, 0, 0]
    assert report.overall.empty_share == pytest.approx(2 / 3)
    (problem,) = report.problems
    assert "2 of 3 expressions" in problem and "row 1, 'the hat'" in problem


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([1], "not an object"),
        ({"rle": rle(4)}, "give row, or image and expression"),
        ({"row": 3, "rle": rle(4)}, "rows are 0 to 2"),
        ({"row": -1, "rle": rle(4)}, "rows are 0 to 2"),
        ({"row": True, "rle": rle(4)}, "rows are 0 to 2"),
        (
            {"image": "c.png", "expression": "the bag", "rle": rle(4)},
            "no expression 'the bag' about the photograph c.png",
        ),
        ({"row": 1}, "has no mask"),
        ({"row": 1, "rle": {"size": [8, 10]}}, "has no mask"),
        ({"row": 1, "rle": rle(4, (10, 8))}, r"size \[10, 8\]; give \[8, 10\]"),
        ({"row": 1, "rle": {"size": [8.0, 10], "counts": rle(4)["counts"]}}, "give"),
        ({"row": 1, "rle": {"size": [8, [10]], "counts": "P2"}}, "give"),
        ({"row": 1, "rle": {"size": [8, 10], "counts": ""}}, "do not add up"),
        ({"row": 1, "rle": {"size": [8, 10], "counts": "1000"}}, "do not add up"),
        ({"row": 1, "rle": {"size": [8, 10], "counts": "o" * 30}}, "no run lengths"),
        ({"row": 1, "rle": {"size": [8, 10], "counts": "é"}}, "encode the mask with pycocotools"),
        ({"row": 1, "rle": {"size": [8, 10], "counts": "o"}}, "cut short"),
        ({"row": 1, "rle": {"size": [8, 10], "counts": [100, -20]}}, "do not add up"),
        ({"row": 1, "rle": {"size": [8, 10], "counts": [40.0, 40]}}, "do not add up"),
        ({"row": 1, "rle": rle(4), "score": 2}, "0 to 1"),
        ({"row": 1, "rle": rle(4), "found": "no"}, "true or false"),
        ({"row": 0, "rle": rle(4)}, "has a prediction already"),
    ],
)
def test_a_bad_line_is_named_and_spoils_nothing(scored, line, message):
    report = scored([{"row": 0, "rle": rle(4)}, line, {"row": 2, "rle": rle(10)}])
    assert ious(report) == [1, 0, 1]
    (first, _) = report.problems
    assert first.startswith("lavt.jsonl, line 2: ")
    with pytest.raises(RefsegError, match=message):
        raise RefsegError(first)


def test_a_name_that_two_photographs_share_is_not_guessed(scored):
    rows = [*ROWS, Row(Path("y/a.png"), 9, *SIZE, "the bag", encode_mask(mask_of(4)))]
    report = scored([{"image": "a.png", "expression": "the bag", "rle": rle(4)}, {"row": 1, "rle": rle(5)}], rows)
    assert "several photographs a.png" in report.problems[0]
    report = scored([{"image": 9, "expression": "the bag", "rle": rle(4)}], rows)
    assert ious(report)[3] == 1


def test_one_sentence_for_two_referents_answers_both(scored):
    rows = [*ROWS, Row(Path("x/a.png"), 7, *SIZE, "the bag", encode_mask(mask_of(8)))]
    report = scored([{"image": 7, "expression": "the bag", "rle": rle(4)}], rows)
    assert (ious(report)[0], ious(report)[3]) == (1, 0.5)


def test_a_file_without_a_single_answer_is_an_error(scored, tmp_path):
    with pytest.raises(RefsegError, match=r"no prediction for any of 3 expressions.*line 1"):
        scored(["{}"])
    with pytest.raises(RefsegError, match="no prediction"):
        scored([])
    (tmp_path / "raw.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RefsegError, match="not text"):
        score_predictions(tmp_path / "raw.jsonl", ROWS)


def test_protocols_bring_stored_masks_to_their_square(scored):
    lines = [{"row": 0, "rle": rle(4)}, {"row": 1, "rle": rle(240, (480, 480))}]
    report = scored(lines, protocol=LAVT)
    assert [answer.pixels[:3] for answer in report.answers[:2]] == [(480 * 192,) * 3, (480 * 240,) * 3]
    with pytest.raises(RefsegError, match="--resolution"):
        scored(lines, protocol=SHNET)
    assert scored(lines[:1], protocol=SHNET, image_size=16).answers[0].pixels.prediction > 0


def test_gres_takes_found_from_the_line(scored):
    empty = Row(Path("x/c.png"), 9, *SIZE, "the cat", encode_mask(mask_of(0)))
    lines = [{"row": 0, "rle": rle(4), "found": False}, {"row": 1, "rle": rle(1), "found": False}]
    report = scored(lines, [ROWS[0], empty], protocol=GRES)
    assert (report.overall.target_accuracy, report.overall.no_target_accuracy) == (0, 1)


def test_uncompressed_run_lengths(scored):
    assert ious(scored([{"row": 0, "rle": {"size": [8, 10], "counts": [0, 32, 48]}}]))[0] == 1


PROGRAM = """
import sys
sys.modules["torch"] = None
from refseg.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_predictions_are_scored_without_torch(tmp_path, protocol):
    write_table(tmp_path / "table.jsonl", ROWS)
    lines = [json.dumps({"row": number, "rle": rle(4)}) for number in range(3)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    command = ["score", tmp_path / "lines.jsonl", "--data", tmp_path / "table.jsonl", "--resolution", 320]
    line = [sys.executable, "-c", PROGRAM, *map(str, command), "--protocol", protocol, "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["protocol"] == protocol
