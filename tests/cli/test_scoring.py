"""From a model or its predictions to scores, a comparison and a calibrated checkpoint, as people type it."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from refseg.calibration import Calibration
from refseg.cli import main
from refseg.cli.scoring import ProtocolName
from refseg.data.sources import load_rows
from refseg.data.table import read_table, write_table
from refseg.evaluation.protocols import PROTOCOLS
from refseg.evaluation.report import read_report
from refseg.words import WordTokenizer


@pytest.fixture
def run(tmp_path, tiny_model, monkeypatch, capsys):
    """Runs a command in a folder with the checkpoint `tiny` and a table of four scenes; code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny_model, "tiny")
    write_table(Path("table.jsonl"), load_rows("scenes:4:2", per_photo=6))

    def typed(*words):
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return typed


def scores(path):
    return [(a.row, a.pixels) for a in read_report(Path(path)).answers]


def test_the_protocols_on_the_command_line_are_those_there_are():
    assert {name.value for name in ProtocolName} == set(PROTOCOLS)


def test_a_model_scores_as_its_own_predictions_do(run):
    assert run("evaluate", "tiny", "--data", "table.jsonl", "--out", "model.json")[0] == 0
    lines = []
    for row in read_table(Path("table.jsonl")):
        code, out, _ = run("segment", "-p", row.image, "-e", row.expression, "--model", "tiny", "--json")
        assert code == 0
        lines.append(out)
    Path("predictions.jsonl").write_text("".join(lines))
    assert run("score", "predictions.jsonl", "--data", "table.jsonl", "--out", "lines.json")[0] == 0
    assert scores("lines.json") == scores("model.json")

    code, table, _ = run("report", "model.json", "lines.json")
    assert code == 0 and "+0.0 (+0.0 to +0.0)" in table


def test_words_of_a_vector_file_are_understood(run):
    """A circle by another name is found as well as the circle is."""
    tokenizer = WordTokenizer.from_pretrained("tiny")
    table = load_file("tiny/model.safetensors")["text_encoder.embedding.weight"]
    vectors = {word: table[index] for word, index in tokenizer.vocabulary.items() if index > 1}
    vectors["satchel"] = vectors["bag"]
    lines = (f"{word} {' '.join(map(str, vector.tolist()))}\n" for word, vector in vectors.items())
    Path("words.vec").write_text("".join(lines))
    rows = read_table(Path("table.jsonl"))
    for name in ("bag", "satchel"):
        said = [dataclasses.replace(row, expression=f"the {name} on the left") for row in rows]
        write_table(Path(f"{name}.jsonl"), said)
        command = ("evaluate", "tiny", "--data", f"{name}.jsonl", "--out", f"{name}.json")
        assert run(*command, "--word-vectors", "words.vec")[0] == 0
    assert [pixels for _, pixels in scores("satchel.json")] == [pixels for _, pixels in scores("bag.json")]
    code, _, complaint = run("evaluate", "tiny", "--data", "bag.jsonl", "--word-vectors", "absent.vec")
    assert code != 0 and "cannot be read" in complaint


def test_every_protocol_by_its_name(run):
    for name in PROTOCOLS:
        code, out, _ = run("evaluate", "tiny", "--data", "table.jsonl", "--photos", 2, "--protocol", name, "--json")
        record = json.loads(out)
        assert (code, record["protocol"], record["photographs"]) == (0, name, 2)
    assert run("evaluate", "tiny", "--data", "table.jsonl", "--protocol", "own")[0] == 2


def test_predictions_that_lack_some_are_scored_and_told(run):
    first, *others = read_table(Path("table.jsonl"))
    line = {"row": 0, "rle": {"size": [first.height, first.width], "counts": first.counts}}
    Path("one.jsonl").write_text(json.dumps(line) + "\n{}\n")
    code, out, err = run("score", "one.jsonl", "--data", "table.jsonl", "--name", "LAVT")
    assert code == 1 and out.startswith("model LAVT")
    assert "line 2" in err and f"{len(others)} of {len(others) + 1} expressions have no prediction" in err
    assert run("score", "none.jsonl", "--data", "table.jsonl")[0] == 2


def test_the_report_card_and_the_swaps(run):
    code, out, _ = run("evaluate", "tiny", "--data", "scenes:3:5", "--card", "card", "--swaps")
    assert code == 0 and "left and right exchanged: " in out
    assert sorted(path.name for path in Path("card").iterdir()) == ["card.png", "contact.jpg", "report.json"]
    assert read_report(Path("card/report.json")).data == "scenes:3:5"


def test_reports_by_group_and_as_csv(run):
    run("evaluate", "tiny", "--data", "table.jsonl", "--out", "a.json")
    code, out, _ = run("report", "a.json", "--by", "size", "--format", "csv")
    assert code == 0 and out.splitlines()[0].startswith("protocol,data,") and ",size,20% and more," in out
    code, _, err = run("report", "a.json", "tiny/config.json")
    assert code == 2 and "tiny/config.json: this is no report" in err


def stored():
    return json.loads(Path("tiny/config.json").read_text())["calibration"]


def test_calibration_goes_into_the_checkpoint_and_comes_out_of_every_answer(run):
    photo = read_table(Path("table.jsonl"))[0].image
    before = json.loads(run("segment", photo, "the dog", "--model", "tiny", "--json")[1])
    assert before["found"] is None
    fit = ("calibrate", "tiny", "--data", "scenes:12:5")
    code, told, _ = run(*fit, "--dry-run", "--plot", "plots/reliability.png")
    assert code == 0 and "expected calibration error" in told and Path("plots/reliability.png").is_file()
    assert stored() is None

    assert run(*fit)[0] == 0
    assert Calibration.from_dict(stored())
    after = json.loads(run("segment", photo, "the dog", "--model", "tiny", "--json")[1])
    assert after["rle"] == before["rle"] and after["score"] != before["score"]
    assert run("calibrate", "table.jsonl", "--data", "scenes:12:5")[0] == 2
