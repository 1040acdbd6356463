import hashlib
import json
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from copies import HEIGHT, photo_name, publish, refs, square, write_published, write_referit
from typer.testing import CliRunner

from refseg.cli import datasets
from refseg.data.published.audit import count, overlaps, skip_lines, verify
from refseg.data.published.catalogue import DATASETS, Counts
from refseg.data.published.refer import read_refer
from refseg.data.published.referents import Copy, Photographs, Referent, Skip
from refseg.data.published.referit import read_referit
from refseg.data.segmentations import Reason
from refseg.data.table import read_table
from refseg.errors import RefsegError

SHARED = Path(__file__).parents[3] / "../shared/data/expressions"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REFSEG_DATA", raising=False)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The commands as they are registered; a RefsegError comes through."""
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    for command in (datasets.prepare, datasets.verify, datasets.audit):
        app.command()(command)

    def invoke(*arguments):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        if isinstance(result.exception, RefsegError):
            raise result.exception
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return invoke


def referent(image_id, split, expressions=1, segment_id=1):
    return Referent(photo_name(image_id), image_id, (segment_id,), ("x",) * expressions, (square(0, 0),), split)


def copy_of(name, *referents):
    return Copy(DATASETS[name], "by hand", list(referents), Photographs([]))


# ---------------------------------------------------------------- verify


def test_a_sound_copy(tmp_path, monkeypatch):
    unc = publish(monkeypatch)
    place = write_published(tmp_path)
    report = verify(read_refer(unc, tmp_path))
    assert report.sound
    text = report.to_text()
    assert text.count("as published") == 4 and "DIFFERS" not in text and "cocodataset" not in text
    assert hashlib.sha256((place / "instances.json").read_bytes()).hexdigest() in text
    assert text.count("no published hash is on record") == 2


def test_counts_that_differ_are_named(tmp_path, monkeypatch):
    unc = publish(monkeypatch)
    place = write_published(tmp_path)
    (place / "refs(unc).p").write_bytes(pickle.dumps(refs()[:-1]))
    report = verify(read_refer(unc, tmp_path))
    assert not report.sound
    assert {s.split for s in report.splits if not s.sound} == {"testB"}
    line = next(line for line in report.to_text().splitlines() if line.startswith("testB"))
    assert line.split()[1:] == ["0", "/", "2", "0", "/", "1", "0", "/", "1", "DIFFERS"]


def test_missing_photographs_are_counted_and_their_source_named(tmp_path, monkeypatch):
    unc = publish(monkeypatch)
    write_published(tmp_path)
    folder = tmp_path / "images/mscoco/images/train2014"
    for image_id in (100, 104):
        (folder / photo_name(image_id)).unlink()
    report = verify(read_refer(unc, tmp_path))
    text = report.to_text()
    assert not report.sound
    assert "2 of 6 photographs are missing" in text and str(folder) in text
    assert "4 expressions skipped, photograph missing" in text and photo_name(104) in text
    assert "2014 Train images" in text


def test_hashes_on_record_are_compared(tmp_path, monkeypatch):
    pytest.importorskip("scipy")
    place = write_referit(tmp_path)
    file = place / "data/referit_query_val.json"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    small = {"train": Counts(3, 2, 1), "val": Counts(3, 2, 1), "trainval": Counts(6, 4, 2), "test": Counts(3, 2, 1)}
    known = replace(DATASETS["referit"], splits=small, hashes={file.name: digest})
    assert verify(read_referit(known, tmp_path)).sound
    changed = replace(known, hashes={file.name: "0" * 64})
    report = verify(read_referit(changed, tmp_path))
    assert not report.sound and "DIFFERS from the published file" in report.to_text()


def test_skips_are_summed_per_reason_and_the_list_is_kept_short():
    skips = [Skip(Reason.EMPTY, f"photo {n}", 2) for n in range(8)] + [Skip(Reason.SIZE, "other")]
    first, second = skip_lines(skips)
    assert first == "16 expressions skipped, empty mask: photo 0; photo 1; photo 2; photo 3; photo 4 and 3 more"
    assert second == "1 expressions skipped, mask of another size than the photograph: other"


@pytest.mark.parametrize("split", ["val", "testA", "testB"])
@pytest.mark.data
def test_the_published_texts_have_the_published_counts(tmp_path, split):
    """The real UNC sentences and ids, in the published format."""
    file = SHARED / f"refcoco-unc/{split}.jsonl"
    if not file.is_file():
        pytest.skip("needs ../shared/data/expressions beside the checkout")
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        ref = found.setdefault(
            row["ref_id"],
            {
                "ref_id": row["ref_id"], "ann_id": row["ref_id"], "image_id": row["image_id"], "split": split,
                "file_name": f"COCO_train2014_{row['image_id']:012d}_{row['ref_id']}.jpg", "category_id": 1,
                "sent_ids": [], "sentences": [],
            },
        )  # fmt: skip
        ref["sent_ids"].append(row["sent_id"])
        tokens = row["expression"].split()
        ref["sentences"].append({"sent": row["expression"], "raw": row["expression"], "tokens": tokens})
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco/refs(unc).p").write_bytes(pickle.dumps(list(found.values()), 2))
    images = {ref["image_id"] for ref in found.values()}
    (tmp_path / "refcoco/instances.json").write_text(
        json.dumps(
            {
                "images": [{"id": i, "file_name": photo_name(i), "height": HEIGHT, "width": 32} for i in images],
                "annotations": [
                    {"id": r["ann_id"], "image_id": r["image_id"], "category_id": 1, "segmentation": square(1, 1)}
                    for r in found.values()
                ],
                "categories": [{"id": 1, "name": "person"}],
            }
        )
    )
    copy = read_refer(DATASETS["unc"], tmp_path)
    assert count(copy.of(split)) == DATASETS["unc"].splits[split]
    sentences = Counter(json.loads(line)["expression"] for line in file.read_text(encoding="utf-8").splitlines())
    assert Counter(sentence for one in copy.of(split) for sentence in one.expressions) == sentences


def test_published_counts_agree_with_the_published_totals():
    """The papers' tables; UNC's splits have one expression more than its paper says."""

    def total(name):
        return tuple(map(sum, zip(*DATASETS[name].splits.values(), strict=True)))

    assert total("unc") == (142_209 + 1, 50_000, 19_994)
    assert total("unc+") == (141_564, 49_856, 19_992)
    assert total("gref-umd") == (95_010, 49_822, 25_799)
    assert total("gref-google")[:2] == (95_010, 49_822)
    referit = DATASETS["referit"].splits
    assert tuple(a + b for a, b in zip(referit["train"], referit["val"], strict=True)) == referit["trainval"]


# ---------------------------------------------------------------- overlaps


def test_overlaps_by_hand():
    unc = copy_of("unc", referent(1, "train"), referent(2, "train"), referent(3, "val"), referent(4, "testA"))
    gref = copy_of(
        "gref-google", referent(3, "train"), referent(2, "val", 3), referent(2, "val", 2, 2), referent(9, "val")
    )
    found = {(one.training, one.evaluation): one for one in overlaps([unc, gref])}
    assert set(found) == {("unc:train", "gref-google:val"), ("gref-google:train", "unc:val")}
    leak = found["unc:train", "gref-google:val"]
    assert (leak.photographs, leak.share, leak.expressions) == (frozenset({2}), 0.5, 5)
    assert found["gref-google:train", "unc:val"].photographs == {3}


def test_a_partition_by_objects_leaks_into_itself():
    gref = copy_of("gref-google", referent(1, "train"), referent(1, "val", segment_id=2))
    (one,) = overlaps([gref])
    assert (one.training, one.evaluation) == ("gref-google:train", "gref-google:val")


def test_equal_numbers_in_different_collections_are_different_photographs():
    assert overlaps([copy_of("unc", referent(16, "train")), copy_of("referit", referent(16, "test"))]) == []


# ---------------------------------------------------------------- the commands


def test_prepare_writes_every_split(run, tmp_path, monkeypatch):
    publish(monkeypatch)
    write_published(tmp_path / "root")
    result = run("prepare", "refcoco", "--root", tmp_path / "root")
    assert result.exit_code == 0
    rows = read_table(tmp_path / "unc.jsonl")
    assert Counter(row.split for row in rows) == {"unc:train": 6, "unc:val": 2, "unc:testA": 2, "unc:testB": 2}
    assert all(row.image.is_file() for row in rows)
    assert "unc.jsonl: 12 rows" in result.output


def test_prepare_one_split(run, tmp_path, monkeypatch):
    publish(monkeypatch)
    write_published(tmp_path / "root")
    assert run("prepare", "unc", "--root", tmp_path / "root", "--split", "val").exit_code == 0
    assert len(read_table(tmp_path / "unc-val.jsonl")) == 2
    with pytest.raises(RefsegError, match="no split 'dev'"):
        run("prepare", "unc", "--root", tmp_path / "root", "--split", "dev")


def test_prepare_lists_what_it_leaves_out(run, tmp_path, monkeypatch):
    publish(monkeypatch)
    write_published(tmp_path / "root")
    (tmp_path / "root/images/mscoco/images/train2014" / photo_name(103)).unlink()
    result = run("prepare", "unc", "--root", tmp_path / "root", "--out", tmp_path / "t.jsonl")
    assert result.exit_code == 1
    assert "2 expressions skipped, photograph missing: " + photo_name(103) in result.output
    assert len(read_table(tmp_path / "t.jsonl")) == 10


def test_prepare_without_any_photograph_leaves_no_table(run, tmp_path):
    write_published(tmp_path / "root")
    (tmp_path / "root/images").rename(tmp_path / "elsewhere")
    with pytest.raises(RefsegError, match="nothing of UNC"):
        run("prepare", "unc", "--root", tmp_path / "root")
    assert not (tmp_path / "unc.jsonl").exists()


def test_verify(run, tmp_path, monkeypatch):
    publish(monkeypatch)
    write_published(tmp_path / "root")
    monkeypatch.setenv("REFSEG_DATA", str(tmp_path / "root"))
    assert run("verify", "unc").exit_code == 0
    (tmp_path / "root/images/mscoco/images/train2014" / photo_name(103)).unlink()
    result = run("verify", "unc")
    assert result.exit_code == 1 and "1 of 6 photographs are missing" in result.output


def test_audit(run, tmp_path):
    write_published(tmp_path / "root")
    write_published(tmp_path / "root", "refcocog", "google", first=103)
    result = run("audit", "unc", "gref", "--root", tmp_path / "root")
    assert result.exit_code == 0
    table = [line.split() for line in result.output.splitlines()[1:]]
    assert ["gref-google:train", "unc:testA", "1", "100.0%", "2"] in table
    assert len(table) == 3
    assert "no photograph is shared" in run("audit", "unc", "--root", tmp_path / "root").output


def test_help_shows_an_example(run):
    for command in ("prepare", "verify", "audit"):
        assert f"refseg data {command} unc" in run(command, "--help").output
