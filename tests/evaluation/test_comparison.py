import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from refseg.errors import RefsegError
from refseg.evaluation.comparison import Runs, bootstrap, read_runs, to_csv, to_markdown
from refseg.evaluation.protocols import CRIS, LAVT, NATIVE, SHNET, Pixels
from refseg.evaluation.report import Report, Scored, read_report


def report(pixels, model="a", protocol=NATIVE, fingerprint="f", kinds=("colour", "size"), **notes):
    """Two expressions a photograph; `pixels` are (intersection, prediction, target) in that order."""
    answers = [
        Scored(n, f"{n // 2}.png", Pixels(*counts, counts[1] > 0), 0.5, 0.1, "val", kinds[n % 2], False)
        for n, counts in enumerate(pixels)
    ]
    return Report(model, "d", protocol, 320, 0.5, "1.0", 0, fingerprint, 0, [], answers, **notes)


WORSE = report([(5, 10, 10), (2, 4, 4), (0, 0, 6), (3, 9, 9)], "worse")
BETTER = report([(9, 10, 10), (3, 4, 4), (5, 6, 6), (8, 9, 9)], "better")


def alone(*reports):
    return [Runs(report.model, [report]) for report in reports]


def test_the_difference_itself_is_that_of_the_scores():
    overall, mean = bootstrap([WORSE], [BETTER])
    assert overall.difference == pytest.approx(BETTER.overall.overall_iou - WORSE.overall.overall_iou)
    assert mean.difference == pytest.approx(BETTER.overall.mean_iou - WORSE.overall.mean_iou)
    assert overall.low <= overall.difference <= overall.high
    back = bootstrap([BETTER], [WORSE])[0]
    assert back.difference == -overall.difference and back.low == pytest.approx(-overall.high)


def test_a_report_does_not_differ_from_itself():
    assert bootstrap([WORSE], [replace(WORSE, model="again")]) == ((0, 0, 0), (0, 0, 0))


def test_the_interval_agrees_with_drawing_photographs_by_hand():
    rng = np.random.default_rng(5)
    targets = rng.integers(50, 100, 60)
    first = report([(int(rng.integers(0, t)), int(t), int(t)) for t in targets], "first")
    second = report([(int(rng.integers(t // 3, t)), int(t), int(t)) for t in targets], "second")

    def ious(of, photographs):
        own = [of.answers[2 * p + k].pixels for p in photographs for k in (0, 1)]
        overall = sum(p.intersection for p in own) / sum(p.union for p in own)
        return overall, np.mean([p.intersection / p.union for p in own])

    drawn = []
    for _ in range(2000):
        photographs = rng.integers(0, 30, 30)
        drawn.append(np.subtract(ious(second, photographs), ious(first, photographs)))
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    for place, interval in enumerate(bootstrap([first], [second])):
        assert interval.low == pytest.approx(low[place], abs=0.01)
        assert interval.high == pytest.approx(high[place], abs=0.01)


def test_pairs_are_rows_wherever_the_photographs_lay():
    moved = replace(BETTER, answers=[a._replace(photograph="z/" + a.photograph[::-1]) for a in BETTER.answers])
    assert bootstrap([WORSE], [moved]) == bootstrap([WORSE], [BETTER])


def test_only_rows_that_both_scored_count():
    partial = replace(BETTER, answers=BETTER.answers[:2])
    assert bootstrap([WORSE], [partial])[0].difference == pytest.approx(12 / 16 - 7 / 21)


def test_what_does_not_compare_is_refused():
    with pytest.raises(RefsegError, match="native and lavt"):
        bootstrap([WORSE], [replace(BETTER, protocol=LAVT)])
    with pytest.raises(RefsegError, match="worse and better were scored on different rows"):
        bootstrap([WORSE], [replace(BETTER, fingerprint="g")])


def test_protocols_and_data_stand_in_tables_of_their_own():
    others = [replace(WORSE, protocol=LAVT), replace(WORSE, fingerprint="g", data="e"), BETTER]
    blocks = to_markdown(alone(WORSE, *others)).split("\n\n")
    titles, tables = blocks[::2], blocks[1::2]
    assert [title.split(",")[0] for title in titles] == [
        "Protocol native (original H×W)",
        "Protocol lavt (square 480)",
        "Protocol native (original H×W)",
    ]
    assert "data e" in titles[2]
    assert [table.count("\n") for table in tables] == [3, 2, 2]
    with pytest.raises(RefsegError, match="3 tables"):
        to_csv(alone(WORSE, *others))


def test_the_table():
    title, table = to_markdown(alone(WORSE, BETTER)).split("\n\n")
    assert "2 photographs" in title
    header, _, first, second = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()]
    assert {len(header), len(first), len(second)} == {len(header)}
    assert header[3:6] == ["overall IoU", "mean IoU", "P@0.5"]
    assert first[:5] == ["worse", "320", "0.5", f"{100 * 10 / 42:.1f}", f"{100 * WORSE.overall.mean_iou:.1f}"]
    assert "overall against worse (95%)" in header
    assert first[-1] == "" and second[-2].startswith("+")


def test_members_of_a_group_are_compared_among_themselves():
    table = to_markdown(alone(WORSE, BETTER), "kind").split("\n\n")[1].splitlines()
    assert [line.split("|")[4].strip() for line in table[2:]] == ["colour", "size", "colour", "size"]
    change = bootstrap([WORSE], [BETTER], "size", "kind")[1]
    assert change.difference == pytest.approx((3 / 5 + 8 / 10) / 2 - (2 / 6 + 3 / 15) / 2)
    with pytest.raises(RefsegError, match="one of: all, set, kind"):
        to_markdown(alone(WORSE), "colour")
    nameless = report([(1, 1, 1)], kinds=("", ""))
    with pytest.raises(RefsegError, match="belongs to a kind"):
        to_markdown(alone(nameless), "kind")


def test_csv():
    lines = list(csv.DictReader(io.StringIO(to_csv(alone(WORSE, BETTER)))))
    assert [line["model"] for line in lines] == ["worse", "better"]
    assert float(lines[0]["overall_iou"]) == pytest.approx(WORSE.overall.overall_iou, abs=1e-6)
    assert lines[0]["overall_difference"] == "" and float(lines[1]["overall_difference"]) > 0
    assert (lines[0]["protocol"], lines[0]["rows"], lines[0]["expressions"]) == ("native", "f", "4")


def test_several_seeds_are_one_line_of_means_and_deviations(tmp_path):
    again = report([(8, 10, 10), (1, 4, 4), (6, 6, 6), (7, 9, 9)], "better, another seed")
    folder = tmp_path / "better"
    folder.mkdir()
    for name, one in (("0", BETTER), ("1", again)):
        (folder / f"{name}.json").write_text(one.to_json())
    runs = read_runs(folder)
    assert runs == ("better", [BETTER, again])
    ious = [one.overall.overall_iou for one in runs.reports]
    _, line = csv.DictReader(io.StringIO(to_csv([*alone(WORSE), runs])))
    assert (line["model"], line["runs"], line["expressions"]) == ("better", "2", "4")
    assert float(line["overall_iou"]) == pytest.approx(sum(ious) / 2, abs=1e-6)
    assert float(line["overall_deviation"]) == pytest.approx(abs(ious[0] - ious[1]) / 2**0.5, abs=1e-6)
    assert float(line["overall_difference"]) == pytest.approx(sum(ious) / 2 - WORSE.overall.overall_iou, abs=1e-6)
    assert f"{50 * sum(ious):.1f} ± {100 * abs(ious[0] - ious[1]) / 2**0.5:.1f}" in to_markdown([runs])
    (folder / "2.json").write_text(replace(BETTER, fingerprint="g").to_json())
    with pytest.raises(RefsegError, match="different rows"):
        read_runs(folder)
    (tmp_path / "none").mkdir()
    with pytest.raises(RefsegError, match="none holds no report"):
        read_runs(tmp_path / "none")


def test_the_interval_of_several_seeds_is_that_of_their_mean():
    same = bootstrap([WORSE, WORSE], [BETTER, BETTER])
    assert same == bootstrap([WORSE], [BETTER])
    apart = [bootstrap([WORSE], [one])[1].difference for one in (WORSE, BETTER)]
    assert bootstrap([WORSE], [WORSE, BETTER])[1].difference == pytest.approx(sum(apart) / 2)


def test_a_protocol_without_overall_iou_has_no_difference_in_it():
    overall, mean = bootstrap([replace(WORSE, protocol=CRIS)], [replace(BETTER, protocol=CRIS)])
    assert math.isnan(overall.difference) and str(overall) == "–"
    assert mean.difference > 0


def test_expressions_passed_over_do_not_weigh():
    empty = report([(5, 10, 10), (0, 0, 0), (3, 6, 6), (2, 4, 4)], protocol=SHNET)
    full = report([(6, 10, 10), (0, 1, 0), (3, 6, 6), (2, 4, 4)], protocol=SHNET)
    assert bootstrap([empty], [full])[1].difference == pytest.approx(full.overall.mean_iou - empty.overall.mean_iou)


def test_files_that_are_no_reports(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(WORSE.to_json())
    assert read_report(path) == WORSE
    for text, message in [
        ("{", "not JSON"),
        ("[]", "no report"),
        ('{"model": "m"}', "no report"),
        ("null", "no report"),
    ]:
        path.write_text(text)
        with pytest.raises(RefsegError, match=message):
            read_report(path)
    record = WORSE.to_dict()
    record["protocol"] = "own"
    path.write_text(json.dumps(record))
    with pytest.raises(RefsegError, match=r"r\.json.*'own'"):
        read_report(path)
    with pytest.raises(RefsegError, match="cannot be read"):
        read_report(tmp_path / "none.json")
