import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import torchrun

import refseg
from refseg.data.sources import load_rows
from refseg.data.table import Row, read_table, write_table
from refseg.errors import RefsegError
from refseg.evaluation.evaluate import evaluate
from refseg.evaluation.protocols import CRIS, GRES, LAVT, NATIVE, PROTOCOLS, SHNET
from refseg.evaluation.report import Report
from refseg.evaluation.swaps import ALL, consistency, swapped_pairs
from refseg.masks import encode_mask

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


def answer_of(mask, found=None):
    return SimpleNamespace(mask=mask, score=None, found=found)


class ColumnSegmenter:
    """Answers the expression "5" with the first five columns."""

    def __init__(self, size=SIZE, unreadable=()):
        self.size = size
        self.unreadable = unreadable
        self.encoded = []
        self.image_size, self.threshold, self.refine = 64, 0.5, None

    def encode(self, photo):
        self.encoded.append(photo.name)
        if photo.name in self.unreadable:
            raise RefsegError(f"{photo} is not an image; give a JPEG")
        return Encoded(photo)

    def segment(self, encoded, expressions):
        assert len(expressions) <= 32
        return [answer_of(mask_of(int(expression), self.size)) for expression in expressions]

    def mask_logits(self, encoded, expressions):
        """It has nothing but masks."""


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
    expected |= {("all", "all"): 15 / 32, ("size", "20% and more"): 15 / 32}
    assert got == expected
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
    with caplog.at_level(logging.WARNING, logger="refseg.evaluation.evaluate"):
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
    assert set(evaluate(ColumnSegmenter(), plain, progress=False).scores) == {"all", "siblings", "size"}
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
    names = ["all", "first", "second", "category", "colour", "with a sibling", "without", "20% and more"]
    assert [name in line for name, line in zip(names, table[1:], strict=True)] == [True] * 8


def test_text_admits_a_threshold_that_the_protocol_does_not_use():
    segmenter = ColumnSegmenter()
    assert "decided at 0.5 " in evaluate(segmenter, ROWS, progress=False).to_text()
    segmenter.threshold = 0.35
    assert "decided at 0.35 where the protocol says 0.5" in evaluate(segmenter, ROWS, progress=False).to_text()
    segmenter.threshold = None
    assert "decided by the segmenter" in evaluate(segmenter, ROWS, progress=False).to_text()


# ---------------------------------------------------------------- sizes, other protocols, JSON


def test_sizes_are_shares_of_the_photograph_in_order():
    cells = {(1, 200): "below 1%", (2, 200): "1% to 5%", (10, 200): "5% to 20%", (40, 200): "20% and more"}
    rows = []
    for columns, size in cells:
        mask = np.zeros((10, size), dtype=bool)
        mask[:, :columns] = True
        rows.append(Row(Path("a.png"), 1, 10, size, str(columns), encode_mask(mask)))
    report = evaluate(ColumnSegmenter((10, 200)), rows[::-1], progress=False)
    assert list(report.scores["size"]) == list(cells.values())
    assert all(scores.mean_iou == 1 for scores in report.scores["size"].values())


@dataclass
class EncodedSize:
    size: tuple[int, int]


class LogitSegmenter(ColumnSegmenter):
    """As above, by mask logits over a square of 10×10: surely inside (0.98), doubtful in the next column (0.45)."""

    def encode(self, photo):
        super().encode(photo)
        return EncodedSize(self.size)

    def mask_logits(self, encoded, expressions):
        logits = np.full((len(expressions), 1, 10, 10), -4.0, dtype=np.float32)
        for number, expression in enumerate(expressions):
            logits[number, 0, :, : int(expression)] = 4
            logits[number, 0, :, int(expression) : int(expression) + 1] = -0.2
        return logits

    def segment(self, encoded, expressions):
        return [answer_of(mask_of(int(e), self.size), found=e != "3") for e in expressions]


def test_other_protocols_decide_the_logits_themselves():
    size = (100, 100)
    rows = [Row(Path("a.png"), 1, *size, "5", encode_mask(mask_of(50, size)))]
    segmenter = LogitSegmenter(size)
    segmenter.threshold = 0.99
    reports = {
        protocol.name: evaluate(segmenter, rows, progress=False, protocol=protocol) for protocol in (LAVT, SHNET)
    }
    assert reports["lavt"].threshold == 0.5 and reports["shnet"].threshold == 0.40
    lavt, shnet = reports["lavt"].overall.pixels[0], reports["shnet"].overall.pixels[0]
    # Between the columns at 4.5 and 5.5 tenths, the logit falls from 4 to −0.2; beyond, to −4.
    assert (lavt.target, lavt.prediction) == (480 * 240, 480 * 262)
    assert (shnet.target, shnet.prediction) == (32 * 16, 32 * 18)
    native = evaluate(segmenter, rows, progress=False).overall.pixels[0]
    assert native.prediction == 5 * 100


def test_a_segmenter_without_logits_is_scored_by_its_masks():
    rows = [row("a.png", 4, "5")]
    report = evaluate(ColumnSegmenter(), rows, progress=False, protocol=LAVT)
    assert report.overall.pixels[0][:3] == (480 * 192, 480 * 240, 480 * 192)
    assert report.overall.mean_iou == 0.8


def test_gres_asks_the_answer_whether_it_found_something():
    nothing = Row(Path("a.png"), 1, *SIZE, "3", encode_mask(mask_of(0)))
    report = evaluate(LogitSegmenter(), [nothing, row("a.png", 5, "5")], progress=False, protocol=GRES)
    assert [pixels.found for pixels in report.overall.pixels] == [False, True]
    assert report.overall.no_target_accuracy == report.overall.target_accuracy == 1
    assert "without a referent 100.0%" in report.to_text()
    record = report.to_dict()["scores"]["all"]["all"]
    assert (record["no_target_accuracy"], record["target_accuracy"]) == (1, 1)


def test_gres_does_not_lose_a_referent_that_its_square_is_too_coarse_for():
    """Of 960 columns, a square of 480 keeps every second one."""
    size = (4, 960)
    masks = np.zeros((2, *size), dtype=bool)
    masks[0, :, 0], masks[1, :, 1] = True, True
    rows = [Row(Path("a.png"), 1, *size, "0", encode_mask(mask)) for mask in masks]
    report = evaluate(ColumnSegmenter(size), rows, progress=False, protocol=GRES)
    assert sorted(answer.pixels.target for answer in report.answers) == [0, 480]
    assert report.overall.target_accuracy == report.overall.mean_iou == 0  # both were missed
    assert report.to_dict()["scores"]["all"]["all"]["no_target_accuracy"] is None


def test_a_sentence_without_a_referent_has_no_size_and_no_siblings():
    nothing = Row(Path("a.png"), 1, *SIZE, "0", encode_mask(mask_of(0)), kind="nothing")
    report = evaluate(ColumnSegmenter(), [nothing, row("a.png", 5, "5", kind="typed")], progress=False, protocol=GRES)
    counts = {group: {name: scores.count for name, scores in own.items()} for group, own in report.scores.items()}
    assert counts["size"] == {"20% and more": 1} and counts["siblings"] == {"without": 1}
    assert counts["kind"] == {"nothing": 1, "typed": 1} and counts["all"] == {"all": 2}


def test_only_cris_undoes_the_letterbox_of_a_network():
    size = (50, 100)  # in the middle half of the square
    rows = [Row(Path("a.png"), 1, *size, "5", encode_mask(mask_of(50, size)))]
    segmenter = LogitSegmenter(size)
    for protocol in (LAVT, SHNET, GRES):
        pixels = evaluate(segmenter, rows, progress=False, protocol=protocol, letterbox=True).overall.pixels[0]
        assert pixels.prediction == protocol.bring(mask_of(5, size), 64).sum()  # its masks are scored
    middle = CRIS.decide(segmenter.mask_logits(None, ["5"]), size, 64, letterbox=True)
    undone = evaluate(segmenter, rows, progress=False, protocol=CRIS, letterbox=True).overall.pixels[0]
    assert undone.prediction == middle.sum()
    plain = evaluate(segmenter, rows, progress=False, protocol=CRIS).overall.pixels[0]
    segmenter.letterbox = True
    assert evaluate(segmenter, rows, progress=False, protocol=CRIS).overall.pixels[0] == undone
    assert plain.prediction == CRIS.decide(segmenter.mask_logits(None, ["5"]), size, 64).sum() != middle.sum()


def test_a_photograph_of_another_size_is_skipped_under_every_protocol():
    odd = [Row(Path("c.png"), "c", 4, 4, "2", encode_mask(mask_of(2, (4, 4)))), row("a.png", 4, "4")]
    for protocol in PROTOCOLS.values():
        assert evaluate(LogitSegmenter(), odd, progress=False, protocol=protocol).skipped == 1


def test_shnet_needs_to_know_the_input():
    segmenter = ColumnSegmenter()
    segmenter.image_size = None
    with pytest.raises(RefsegError, match="half the network's input"):
        evaluate(segmenter, ROWS, progress=False, protocol=SHNET)


def test_an_undefined_number_is_null_in_json_and_a_dash_in_the_table():
    report = evaluate(ColumnSegmenter(), ROWS, progress=False, protocol=CRIS)
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["scores"]["all"]["all"]["overall_iou"] is None
    assert report.to_text().split("\n\n")[1].splitlines()[1].split()[1] == "–"


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=str)
def test_a_report_is_read_back_whole(protocol):
    report = evaluate(LogitSegmenter(), ROWS, progress=False, protocol=protocol, model="m", data="d", seed=3)
    again = Report.from_dict(json.loads(report.to_json()))
    assert again == report
    assert again.to_json() == report.to_json()
    assert json.loads(report.to_json()) == report.to_dict()


def test_the_fingerprint_follows_the_rows_and_not_their_place():
    def fingerprint(rows, **options):
        return evaluate(ColumnSegmenter(), rows, progress=False, **options).fingerprint

    first = fingerprint(ROWS)
    assert first == fingerprint([replace(row, image=Path("elsewhere") / row.image) for row in ROWS])
    assert first != fingerprint(ROWS[:3])
    assert first != fingerprint([*ROWS[:3], replace(ROWS[3], expression="7")])
    assert first != fingerprint([*ROWS[:3], replace(ROWS[3], counts=ROWS[0].counts)])
    assert first != fingerprint(ROWS, max_photos=1)


def test_rows_keep_their_numbers():
    report = evaluate(ColumnSegmenter(unreadable=["b.png"]), ROWS, progress=False)
    assert [answer.row for answer in report.answers] == [1, 3]
    assert {answer.photograph for answer in report.answers} == {"a.png"}


# ---------------------------------------------------------------- the tiny model


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFSEG_CACHE", str(cache))
        return cache, load_rows("scenes:5:3", per_photo=8)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_a_real_segmenter_under_every_protocol(tiny_model, scenes, protocol):
    segmenter = refseg.load(tiny_model, device="cpu")
    report = evaluate(segmenter, scenes[1], progress=False, protocol=protocol)
    assert report.overall.count == len(scenes[1])
    sides = {"shnet": 32 * 32, "lavt": 480**2, "gres": 480**2}
    for answer in report.answers:
        row = scenes[1][answer.row]
        share = answer.pixels.target / sides.get(protocol.name, row.height * row.width)
        assert share == pytest.approx(answer.area, rel=0.5, abs=0.01)
    scored = protocol in (NATIVE, GRES)
    assert all((answer.score is not None) == scored for answer in report.answers)


PROGRAM = """
import sys
from pathlib import Path
import torch
import refseg
from refseg.data.table import read_table
from refseg.evaluation.evaluate import evaluate

model, table, out = sys.argv[1:]
report = evaluate(refseg.load(model, device="cpu"), read_table(Path(table)), progress=False, share=True)
Path(out, f"{torch.distributed.get_rank()}.json").write_text(report.to_json())
"""


def test_two_processes_give_the_integers_of_one(tiny_model, scenes, tmp_path):
    lost = replace(scenes[1][-1], image=scenes[1][-1].image.with_name("lost.png"))
    table, program = tmp_path / "table.jsonl", tmp_path / "program.py"
    write_table(table, [*scenes[1][:-1], lost])
    program.write_text(PROGRAM)
    torchrun(program, tiny_model, table, tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun does: with others, sums of floats may round otherwise
    one = evaluate(refseg.load(tiny_model, device="cpu"), read_table(table), progress=False)
    torch.set_num_threads(threads)
    assert (tmp_path / "0.json").read_text() == (tmp_path / "1.json").read_text() == one.to_json()
    assert (one.skipped, one.photographs) == (1, 5)


# ---------------------------------------------------------------- left and right


def test_pairs_differ_in_left_and_right_and_in_their_referent(scenes, monkeypatch):
    monkeypatch.setenv("REFSEG_CACHE", str(scenes[0]))
    pairs = swapped_pairs(load_rows("scenes:5:3", per_photo=ALL))
    assert pairs
    for one, other in pairs:
        assert one.image == other.image and one.counts != other.counts
        assert one.expression != other.expression
        assert one.expression.replace("left", "*").replace("right", "left").replace("*", "right") == other.expression
    assert len({(one.image, one.expression) for one, _ in pairs}) == len(pairs)


class Oracle:
    """Answers with the referent, or always with the left one, or with the wrong one."""

    def __init__(self, rows, way):
        self.rows, self.way = {row.expression: row for row in rows}, way

    def encode(self, photo):
        return photo

    def segment(self, encoded, expressions):
        swap = {"right": None, "stuck": ("right", "left"), "wrong": ("*", "*")}[self.way]
        answers = []
        for expression in expressions:
            asked = expression
            if self.way == "wrong":
                asked = (
                    expression.translate(str.maketrans("lr", "rl")).replace("reft", "right").replace("light", "left")
                )
            elif swap:
                asked = expression.replace(*swap)
            answers.append(SimpleNamespace(mask=self.rows[asked].mask()))
        return answers


def test_consistency_of_one_who_knows_one_who_is_stuck_and_one_who_errs():
    def placed(expression, first, last):
        mask = np.zeros(SIZE, dtype=bool)
        mask[:, first:last] = True
        return Row(Path("a.png"), 1, *SIZE, expression, encode_mask(mask))

    rows = [placed("left", 0, 3), placed("right", 7, 10), placed("blue", 4, 6)]
    knows = consistency(Oracle(rows, "right"), rows, progress=False)
    assert (knows.pairs, knows.consistent, knows.exact, knows.unmoved, knows.rate) == (1, 1, 1, 0, 1)
    stuck = consistency(Oracle(rows, "stuck"), rows, progress=False)
    assert (stuck.consistent, stuck.exact, stuck.unmoved) == (0, 0, 1)
    errs = consistency(Oracle(rows, "wrong"), rows, progress=False)
    assert (errs.consistent, errs.exact, errs.unmoved) == (0, 0, 0)
    assert "100.0% of 1 pairs consistent" in knows.to_text()
    with pytest.raises(RefsegError, match="scenes:100"):
        consistency(Oracle(rows, "right"), rows[1:], progress=False)
