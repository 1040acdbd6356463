import json
import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from refseg.data.table import Row, encode_mask
from refseg.errors import RefsegError
from refseg.evaluate import evaluate

SIZE = (8, 10)


def mask_of(columns, size=SIZE):
    mask = np.zeros(size, dtype=bool)
    mask[:, :columns] = True
    return mask


def row(photo, columns, expression, **rest):
    """A referent that fills the first `columns` columns."""
    mask = encode_mask(mask_of(columns))
    return Row(Path(photo), photo, *SIZE, expression, mask, **rest)


@dataclass
class Encoded:
    photo: Path


class ColumnSegmenter:
    """Answers the expression "5" with the first five columns."""

    def __init__(self, size=SIZE, unreadable=()):
        self.size = size
        self.unreadable = unreadable
        self.encoded = []
        self.image_size, self.threshold = 64, 0.5

    def encode(self, photo):
        self.encoded.append(photo.name)
        if photo.name in self.unreadable:
            raise RefsegError(f"{photo} is not an image; give a JPEG")
        return Encoded(photo)

    def segment(self, encoded, expressions):
        assert len(expressions) <= 32
        return [SimpleNamespace(mask=mask_of(int(expression), self.size)) for expression in expressions]


ROWS = [
    row("b.png", 10, "5", kind="colour", siblings=2, split="second"),
    row("a.png", 4, "4", kind="category", split="first"),
    row("b.png", 10, "0", kind="category", split="second"),
    row("a.png", 8, "6", kind="colour", siblings=1, split="first"),
]


def test_scores_overall_and_per_group():
    report = evaluate(ColumnSegmenter(), ROWS, progress=False)
    # Columns: 4 of 4, 6 of 8, 5 of 10, 0 of 10.
    assert report.overall.overall_iou == 15 / 32
    assert report.overall.mean_iou == pytest.approx((1 + 0.75 + 0.5 + 0) / 4)
    assert report.overall.empty_share == 0.25
    expected = {
        ("set", "first"): 10 / 12,
        ("set", "second"): 5 / 20,
        ("kind", "category"): 4 / 14,
        ("kind", "colour"): 11 / 18,
        ("siblings", "with a sibling"): 11 / 18,
        ("siblings", "without"): 4 / 14,
    }
    got = {(group, name): s.overall_iou for group, own in report.scores.items() for name, s in own.items()}
    assert got == expected | {("all", "all"): 15 / 32}
    assert report.photographs == 2
    assert report.skipped == 0


def test_each_photograph_is_encoded_once_and_answers_stay_with_their_expressions():
    rows = [row("a.png", columns, str(columns)) for columns in [*range(1, 11)] * 7]
    segmenter = ColumnSegmenter()
    report = evaluate(segmenter, rows, progress=False)
    assert segmenter.encoded == ["a.png"]
    assert report.overall.mean_iou == 1
    assert report.overall.count == 70


def test_an_unreadable_photograph_is_skipped_and_counted(caplog):
    with caplog.at_level(logging.WARNING, logger="refseg.evaluate"):
        report = evaluate(ColumnSegmenter(unreadable=["b.png"]), ROWS, progress=False)
    assert report.skipped == 2
    assert report.photographs == 1
    assert report.overall.overall_iou == 10 / 12
    assert "b.png is not an image" in report.problems[0]
    assert "b.png is not an image" in caplog.text


def test_a_photograph_of_another_size_is_skipped_whole():
    odd = [Row(Path("c.png"), "c", 4, 4, "2", encode_mask(mask_of(2, (4, 4))))]
    report = evaluate(ColumnSegmenter(), [*ROWS, *odd], progress=False)
    assert report.skipped == 1
    assert report.overall.count == 4
    assert "(8, 10)" in report.problems[0]
    assert "(4, 4)" in report.problems[0]


def test_nothing_to_score_is_an_error():
    with pytest.raises(RefsegError, match="no expressions"):
        evaluate(ColumnSegmenter(), [], progress=False)
    with pytest.raises(RefsegError, match=r"not one of 2 photographs.*a\.png is not an image"):
        evaluate(ColumnSegmenter(unreadable=["a.png", "b.png"]), ROWS, progress=False)
    with pytest.raises(RefsegError, match="at least 1"):
        evaluate(ColumnSegmenter(), ROWS, progress=False, max_photos=0)


def test_max_photos_reaches_every_data_set():
    rows = [row(f"{name}{k}.png", 5, "5", split=name) for name in "ab" for k in range(10)]
    report = evaluate(ColumnSegmenter(), rows, progress=False, max_photos=4)
    assert report.photographs == 4
    assert {name: scores.count for name, scores in report.scores["set"].items()} == {"a": 2, "b": 2}
    assert evaluate(ColumnSegmenter(), rows, progress=False, max_photos=99).photographs == 20


def test_rows_without_split_or_kind():
    plain = [row("a.png", 5, "5")]
    assert set(evaluate(ColumnSegmenter(), plain, progress=False).scores) == {"all", "siblings"}
    named = evaluate(ColumnSegmenter(), plain, progress=False, data="mine.jsonl")
    assert set(named.scores["set"]) == {"mine.jsonl"}


def test_dictionary_survives_json():
    report = evaluate(ColumnSegmenter(), ROWS, progress=False, model="tiny", data="two.jsonl")
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["protocol"] == "native"
    assert (record["model"], record["data"]) == ("tiny", "two.jsonl")
    assert (record["image_size"], record["threshold"]) == (64, 0.5)
    assert (record["photographs"], record["expressions"], record["skipped"]) == (2, 4, 0)
    assert record["scores"]["all"]["all"]["overall_iou"] == 15 / 32
    assert record["scores"]["kind"]["colour"]["precision"] == {
        "0.5": 1.0,
        "0.6": 0.5,
        "0.7": 0.5,
        "0.8": 0.0,
        "0.9": 0.0,
    }


def test_text_is_an_aligned_table_that_names_protocol_and_both_ious():
    text = evaluate(ColumnSegmenter(), ROWS, progress=False, model="tiny").to_text()
    assert "protocol native" in text
    table = text.split("\n\n")[1].splitlines()
    assert "% (native)" in table[0]
    assert table[0].index("overall IoU") < table[0].index("mean IoU") < table[0].index("P@0.5")
    assert len({len(line) for line in table}) == 1
    assert table[1].split() == ["all", "46.9", "56.2", "75.0", "50.0", "25.0", "25.0", "4"]
    names = ["all", "first", "second", "category", "colour", "with a sibling", "without"]
    assert [name in line for name, line in zip(names, table[1:], strict=True)] == [True] * 7


def test_text_admits_a_threshold_that_the_protocol_does_not_use():
    segmenter = ColumnSegmenter()
    assert "decided at 0.5 " in evaluate(segmenter, ROWS, progress=False).to_text()
    segmenter.threshold = 0.35
    assert "decided at 0.35 where the protocol says 0.5" in evaluate(segmenter, ROWS, progress=False).to_text()
    del segmenter.threshold
    assert "decided by the segmenter" in evaluate(segmenter, ROWS, progress=False).to_text()
