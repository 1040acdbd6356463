"""gRefCOCO from files in its original format to scores under the protocol `gres`."""

import json
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from copies import grefs, instances, jpeg, photo_name, square, square_mask, write_grefcoco
from pycocotools import mask as coco_mask

from refseg.cli import main
from refseg.data.published import catalogue
from refseg.data.published.audit import overlaps, verify
from refseg.data.published.catalogue import DATASETS, Counts
from refseg.data.published.refer import read_refer
from refseg.data.published.referents import make_rows
from refseg.data.segmentations import Reason
from refseg.data.sources import load_rows
from refseg.data.table import read_table, write_table
from refseg.errors import RefsegError
from refseg.evaluation.report import read_report

GREFCOCO = DATASETS["grefcoco"]
PEOPLE = square_mask(2, 5) | square_mask(11, 5)
MAN_AND_DOG = square_mask(11, 5) | square_mask(20, 5)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("REFSEG_DATA", str(tmp_path))
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path


def rows_of(root, split="val"):
    rows, skips = make_rows(read_refer(GREFCOCO, root), split)
    assert not skips
    return {row.expression: row for row in rows}


def val_refs():
    """The references to photograph 103, the only one of val, by expression, and all references."""
    references = grefs()
    return {ref["sentences"][0]["sent"]: ref for ref in references if ref["split"] == "val"}, references


def test_one_several_and_no_segment(root):
    write_grefcoco(root)
    rows = rows_of(root)
    expected = {
        "left man": ((1030,), "person", "", 1, square_mask(2, 5)),
        "both people": ((1030, 1031), "person", "several", 0, PEOPLE),
        "the man and his dog": ((1031, 1032), "", "several", 0, MAN_AND_DOG),
        "the cat": ((), "", "nothing", 0, np.zeros_like(PEOPLE)),
    }
    assert set(rows) == set(expected)
    for expression, (ids, label, kind, siblings, mask) in expected.items():
        row = rows[expression]
        assert (row.segment_ids, row.label, row.kind, row.siblings) == (ids, label, kind, siblings)
        assert (row.mask() == mask).all()
        assert (row.image.name, row.image_id, row.split) == (photo_name(103), 103, "grefcoco:val")
    assert [len(rows_of(root, split)) for split in ("train", "testA", "testB")] == [4, 4, 4]


def test_every_name_and_every_split(root):
    write_grefcoco(root)
    for split, count in (("train", 12), ("val", 4), ("testA", 4), ("testB", 4)):
        rows = load_rows(f"grefcoco:{split}")
        assert len(rows) == count
        assert Counter(row.kind for row in rows) == {"": count // 4, "several": count // 2, "nothing": count // 4}
    with pytest.raises(RefsegError, match="no split 'test'; one of: train, val, testA, testB"):
        load_rows("grefcoco:test")


def test_the_same_as_a_pickle(root):
    place = write_grefcoco(root)
    (place / "grefs(unc).json").unlink()
    (place / "grefs(unc).p").write_bytes(pickle.dumps(grefs()))
    assert len(rows_of(root)) == 4


def test_one_id_without_a_list_and_without_the_flag(root):
    of, references = val_refs()
    of["left man"].update(ann_id=1030, category_id=1)
    of["the cat"].update(ann_id=-1, category_id=-1)
    for ref in references:
        del ref["no_target"]
    write_grefcoco(root, references)
    rows = rows_of(root)
    assert (rows["left man"].mask() == square_mask(2, 5)).all()
    assert rows["the cat"].kind == "nothing"


def test_references_without_sentences_are_no_rows(root):
    """The published val has some."""
    of, references = val_refs()
    of["the cat"].update(sentences=[], sent_ids=[])
    write_grefcoco(root, references)
    assert set(rows_of(root)) == {"left man", "both people", "the man and his dog"}


def test_a_union_of_polygons_and_run_lengths_leaves_crowds_out(root):
    of, references = val_refs()
    of["both people"]["ann_id"] = [1030, 1031, 1032]
    place = write_grefcoco(root, references)
    document = instances()
    segments = {entry["id"]: entry for entry in document["annotations"]}
    segments[1030]["segmentation"] = square(1, 1) + square(20, 10)
    rle = coco_mask.encode(np.asfortranarray(square_mask(11, 5).astype(np.uint8)))
    segments[1031]["segmentation"] = rle | {"counts": rle["counts"].decode()}
    segments[1032]["iscrowd"] = 1
    (place / "instances.json").write_text(json.dumps(document))
    row = rows_of(root)["both people"]
    assert row.segment_ids == (1030, 1031)
    assert (row.mask() == square_mask(1, 1) | square_mask(20, 10) | square_mask(11, 5)).all()


def test_a_turned_photograph_turns_the_union_and_the_empty_mask(root):
    write_grefcoco(root)
    (root / "images/train2014" / photo_name(103)).write_bytes(jpeg(orientation=6))
    rows = rows_of(root)
    assert (rows["both people"].mask() == np.rot90(PEOPLE, -1)).all()
    assert rows["the cat"].mask().shape == PEOPLE.shape[::-1] and not rows["the cat"].mask().any()


def test_half_a_union_is_not_used(root):
    of, references = val_refs()
    of["both people"]["ann_id"] = [1030, 99]
    write_grefcoco(root, references)
    rows, (skip,) = make_rows(read_refer(GREFCOCO, root), "val")
    assert len(rows) == 3
    assert (skip.reason, skip.expressions) == (Reason.NO_MASK, 1)
    assert skip.item.startswith(f"{photo_name(103)}, segments 1030, 99")


def test_a_sentence_about_nothing_still_needs_its_photograph(root):
    write_grefcoco(root)
    (root / "images/train2014" / photo_name(103)).unlink()
    rows, skips = make_rows(read_refer(GREFCOCO, root), "val")
    assert not rows and {skip.reason for skip in skips} == {Reason.NO_PHOTOGRAPH} and len(skips) == 4
    assert f"{photo_name(103)}, segment none" in [skip.item for skip in skips]


@pytest.mark.parametrize(
    "damage",
    [{"ann_id": []}, {"ann_id": [-1]}, {"no_target": True}, {"ann_id": ["x"]}, {"ann_id": None}, {"split": "test"}],
)
def test_references_that_are_not_as_published(root, damage):
    of, references = val_refs()
    of["left man"].update(damage)
    write_grefcoco(root, references)
    with pytest.raises(RefsegError, match=r"grefs\(unc\)\.json.* get a new copy"):
        read_refer(GREFCOCO, root)


def test_half_a_copy_and_none(root):
    with pytest.raises(RefsegError, match=r"no copy of gRefCOCO.*grefs\(unc\)\.json.*henghuiding/gRefCOCO"):
        load_rows("grefcoco:val")
    (write_grefcoco(root) / "instances.json").unlink()
    with pytest.raises(RefsegError, match=r"half a copy: grefs\(unc\)\.json is there and instances\.json is not"):
        load_rows("grefcoco:val")


def published(monkeypatch, **change):
    """Makes the small copy the published one, except for what `change` says."""
    splits = {"train": Counts(0, 0, 0)} | {split: Counts(4, 0, 1) for split in ("val", "testA", "testB")} | change
    monkeypatch.setitem(catalogue.DATASETS, "grefcoco", replace(GREFCOCO, splits=splits, hashes={}))
    return catalogue.DATASETS["grefcoco"]


def test_verify_compares_what_is_known_and_says_what_is_not(root, monkeypatch):
    write_grefcoco(root)
    report = verify(read_refer(published(monkeypatch), root))
    assert report.sound
    lines = [" ".join(line.split()) for line in report.to_text().splitlines()]
    assert "train 12 / ? 12 / ? 3 / ? no published count is on record" in lines
    assert "val 4 / 4 4 / ? 1 / 1 as published" in lines
    report = verify(read_refer(published(monkeypatch, val=Counts(5, 0, 1)), root))
    assert not report.sound and report.to_text().count("DIFFERS") == 1


def test_the_published_hashes_are_compared(root):
    write_grefcoco(root)
    assert verify(read_refer(GREFCOCO, root)).to_text().count("DIFFERS from the published file") == 2


def test_photographs_shared_with_unc_are_found(root):
    write_grefcoco(root)
    copy = read_refer(GREFCOCO, root)
    learnt = [replace(referent, split="train") for referent in copy.referents]
    unc = replace(copy, dataset=DATASETS["unc"], referents=learnt)
    shared = {(overlap.training, overlap.evaluation) for overlap in overlaps([copy, unc])}
    assert shared == {("unc:train", f"grefcoco:{split}") for split in ("val", "testA", "testB")}


def test_prepare_and_verify(root, monkeypatch, capsys):
    published(monkeypatch)
    write_grefcoco(root)
    assert main(["data", "verify", "grefcoco"]) == 0
    assert main(["data", "prepare", "grefcoco", "--out", str(root / "table.jsonl")]) == 0
    rows = read_table(root / "table.jsonl")
    assert Counter(row.split.removeprefix("grefcoco:") for row in rows) == {
        "train": 12,
        "val": 4,
        "testA": 4,
        "testB": 4,
    }
    assert sum(not row.mask().any() for row in rows) == 6


def test_from_the_original_files_to_the_numbers_of_gres(root, capsys):
    """Right about one person and the cat, half right about both people, and nothing found of the man and his dog."""
    write_grefcoco(root)
    rows = load_rows("grefcoco:val")
    answers = {"left man": square_mask(2, 5), "both people": square_mask(2, 5)}
    lines = []
    for number, row in enumerate(rows):
        mask = answers.get(row.expression, np.zeros_like(PEOPLE))
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        found = row.expression in answers
        lines.append({"row": number, "rle": rle | {"counts": rle["counts"].decode()}, "found": found})
    (root / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    write_table(root / "val.jsonl", rows)
    assert read_table(root / "val.jsonl") == rows
    for data in ("grefcoco:val", root / "val.jsonl"):
        command = ["score", root / "lines.jsonl", "--data", data, "--protocol", "gres", "--out", root / "report.json"]
        assert main([*map(str, command)]) == 0
        scores = read_report(root / "report.json").overall
        assert scores.mean_iou == (1 + 0.5 + 0 + 1) / 4  # gIoU
        person = 90 * 120  # six columns of 32 and six rows of 24, on a square of 480
        assert scores.sums == (2 * person, (1 + 2 + 2) * person)  # cIoU; the cat adds nothing
        assert (scores.no_target_accuracy, scores.target_accuracy) == (1, 2 / 3)
        assert scores.precision == {0.5: 2 / 3, 0.6: 1 / 3, 0.7: 1 / 3, 0.8: 1 / 3, 0.9: 1 / 3}
        assert "without a referent 100.0% answered by nothing" in capsys.readouterr().out
