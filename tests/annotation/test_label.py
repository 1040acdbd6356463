"""A folder of photographs becomes a COCO file: whole, once, and again after an interruption."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from safetensors.torch import load_file, save_file

from refseg.annotation.coco import Keep, write_coco
from refseg.annotation.expressions import Label, plan, read_expressions
from refseg.annotation.journal import Journal
from refseg.annotation.label import identity, one_after_the_other, remaining
from refseg.annotation.label import label as label_photographs
from refseg.cli import main
from refseg.errors import RefsegError
from refseg.segmenter import load

EXPRESSIONS = ["the dog", "a blue cup", "the red bag on the left"]


@cache
def loaded(model, device, threshold=None, threads=None):
    return load(model, device=device, threshold=threshold, threads=threads)


@pytest.fixture
def segmenter(tiny_model):
    return loaded(str(tiny_model), "cpu")


@pytest.fixture
def encoded(segmenter, monkeypatch):
    """The names of the photographs that were encoded, in their order."""
    names = []
    encode = type(segmenter).encode
    monkeypatch.setattr(type(segmenter), "encode", lambda self, photo: names.append(photo.name) or encode(self, photo))
    return names


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder: photos/ with a.png, b.jpg and deep/c.png, and things.txt."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for name, size in (("a.png", (48, 64)), ("b.jpg", (40, 30)), ("deep/c.png", (64, 64))):
        pixels = rng.integers(0, 255, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size[::-1]).save(tmp_path / "photos" / name)
    (tmp_path / "things.txt").write_text("\n".join(EXPRESSIONS) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def label(here, tiny_model, capsys, monkeypatch):
    """Runs `refseg label photos` with the tiny model; returns exit code, standard output and standard error."""
    monkeypatch.setattr("refseg.cli.labelling.load_model", loaded)

    def run(*arguments, expressions="things.txt", out="coco.json"):
        line = ["label", "photos", "--expressions", expressions, "--out", out, "--model", str(tiny_model)]
        code = main([*line, "--device", "cpu", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return run


def read(name="coco.json"):
    return json.loads(Path(name).read_text())


# The file of expressions


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("x.txt", "the dog\n\n  a, cup \nthe dog\n", [("the dog", "the dog"), ("a, cup", "a, cup")]),
        (
            "x.csv",
            'the dog,animal\n"a, cup",thing\nhat\n',
            [("the dog", "animal"), ("a, cup", "thing"), ("hat", "hat")],
        ),
        ("x.csv", "\ufeffCategory,Expression\nanimal,the dog\n", [("the dog", "animal")]),
        ("x.csv", "photo,expression\na.png,the dog\n,hat\n", [("the dog", "the dog", "a.png"), ("hat", "hat")]),
    ],
)
def test_expressions_in_every_spelling(tmp_path, name, text, labels):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_expressions(tmp_path / name) == [Label(*label) for label in labels]


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        (b"", "holds no expressions"),
        (b"expression,category\n", "holds no expressions"),
        (b"dog,animal,brown\n", "line 1, has 3 columns and not 2"),
        (b"expression,colour\ndog,brown\n", "has a column 'colour'"),
        (b"dog,animal\n,animal\n", "line 2: the expression is empty"),
        (b"\xff\xfe\x00", "save it as UTF-8"),
    ],
)
def test_expressions_that_are_wrong_name_the_line(tmp_path, text, cure):
    path = tmp_path / "x.csv"
    path.write_bytes(text)
    with pytest.raises(RefsegError, match=cure):
        read_expressions(path)


def test_plan_asks_of_each_photograph_what_names_it_or_names_none():
    labels = [Label("hat", "hat"), Label("dog", "animal", "b.png")]
    assert plan(labels, ["b.png", "a.png"]) == {"a.png": labels[:1], "b.png": labels}
    assert plan(labels[1:], ["a.png", "b.png"]) == {"b.png": labels[1:]}
    with pytest.raises(RefsegError, match=r"b\.png and the folder holds none"):
        plan(labels, ["a.png"])


# The COCO file


def test_coco_is_what_the_library_says(label, here, segmenter):
    code, out, err = label()
    assert (code, err) == (0, "") and out.startswith("coco.json: ")
    coco = COCO("coco.json")
    names = {image["id"]: image for image in coco.dataset["images"]}
    assert [image["file_name"] for image in names.values()] == ["a.png", "b.jpg", "deep/c.png"]
    assert {category["id"]: category["name"] for category in coco.dataset["categories"]} == dict(
        enumerate(EXPRESSIONS, start=1)
    )
    seen = 0
    for image_id, image in names.items():
        results = segmenter(here / "photos" / image["file_name"], EXPRESSIONS)
        assert (image["height"], image["width"]) == results[0].mask.shape
        found = {each["expression"]: each for each in coco.imgToAnns[image_id]}
        assert set(found) == {result.expression for result in results if result.mask.any()}
        for number, result in enumerate(results, start=1):
            if result.expression in found:
                annotation = found[result.expression]
                np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), result.mask)
                left, top, right, bottom = result.box
                assert annotation["bbox"] == [left, top, right - left, bottom - top]
                assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
                assert annotation["area"] == result.mask.sum() and annotation["iscrowd"] == 0
                assert annotation["category_id"] == number and annotation["score"] == round(result.score, 4)
                seen += 1
    assert [annotation["id"] for annotation in coco.dataset["annotations"]] == list(range(1, seen + 1))
    assert seen > 3, "the tiny model finds something"


def test_categories_join_and_split_expressions(label):
    Path("things.csv").write_text("the dog,animal\na blue cup,thing\nthe dog,pet\nthe red bag on the left,thing\n")
    assert label(expressions="things.csv", out="joined.json")[0] == 0
    label()
    assert [category["name"] for category in read("joined.json")["categories"]] == ["animal", "thing", "pet"]
    of = {"the dog": {1, 3}, "a blue cup": {2}, "the red bag on the left": {2}}
    plain = {(each["image_id"], each["expression"]): each["segmentation"] for each in read()["annotations"]}
    joined = {
        (each["image_id"], each["expression"], each["category_id"]): each["segmentation"]
        for each in read("joined.json")["annotations"]
    }
    assert joined == {(*key, number): rle for key, rle in plain.items() for number in of[key[1]]}


def test_only_photographs_that_are_named_are_looked_at(label):
    Path("some.csv").write_text("photo,expression\ndeep/c.png,the dog\n")
    assert label(expressions="some.csv")[0] == 0
    assert [image["file_name"] for image in read()["images"]] == ["deep/c.png"]


def test_answers_are_kept_as_asked():
    def result(score=0.5, found=None, box=(0, 0, 1, 1)):
        return {"score": score, "found": found, "box": box}

    assert Keep()(result(0.01, False)) and not Keep()(result(box=None))
    assert Keep(min_score=0.5)(result()) and not Keep(min_score=0.51)(result())
    strict = Keep(found=True)
    assert strict(result(found=True)) and strict(result()) and not strict(result(found=False))


def test_another_score_costs_no_computing(label, monkeypatch):
    label()
    scores = sorted(each["score"] for each in read()["annotations"])
    monkeypatch.setattr("refseg.segmenter.Segmenter.encode", lambda *_: pytest.fail("computed again"))
    assert label("--min-score", scores[1])[0] == 0
    assert sorted(each["score"] for each in read()["annotations"]) == [each for each in scores if each >= scores[1]]


def test_found_is_refused_where_the_model_does_not_say(label):
    code, _, err = label("--found")
    assert code == 2 and "leave --found out" in err


# Interruptions


def test_each_photograph_is_encoded_once(label, encoded):
    label()
    label()
    assert encoded == ["a.png", "b.jpg", "c.png"]


@pytest.mark.parametrize("left", [-3, 0, 1])
def test_a_journal_cut_anywhere_goes_on_to_the_same_bytes(label, left):
    """Cut within its last line, at the end of one, and within the next."""
    label()
    whole, journal = Path("coco.json").read_bytes(), Path("coco.labels.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    kept = b"".join(lines[:2])
    journal.write_bytes(kept[:left] if left < 0 else kept + lines[2][: left * 100])
    Path("coco.json").unlink()
    assert label()[0] == 0
    assert Path("coco.json").read_bytes() == whole
    assert [json.loads(line).get("photo") for line in journal.read_bytes().splitlines()].count("b.jpg") == 1


def test_the_order_of_the_answers_does_not_matter(here, segmenter, tmp_path):
    photos, made_by = here / "photos", identity(segmenter)
    wanted = plan(read_expressions(here / "things.txt"), ["a.png", "b.jpg", "deep/c.png"])
    engine = one_after_the_other(segmenter, photos)
    for name, order in (("forth", 1), ("back", -1)):
        with Journal(tmp_path / f"{name}.jsonl", made_by) as journal:
            tasks = remaining(wanted, photos, journal)
            assert len(list(label_photographs(tasks[::order], journal, engine))) == 3
            write_coco(tmp_path / f"{name}.json", wanted, journal, "tiny")
    assert (tmp_path / "forth.json").read_bytes() == (tmp_path / "back.json").read_bytes()


def test_an_interruption_loses_nothing_that_was_computed(label, monkeypatch, segmenter):
    calls = []
    encode = type(segmenter).encode

    def interrupted(self, photo):
        calls.append(photo.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, photo)

    monkeypatch.setattr(type(segmenter), "encode", interrupted)
    assert label()[0] == 130
    assert not Path("coco.json").exists() and calls == ["a.png", "b.jpg"]
    assert label()[0] == 0
    assert calls[2:] == ["b.jpg", "c.png"]


def test_another_threshold_or_other_expressions_are_refused_with_a_cure(label):
    label()
    before = Path("coco.json").read_bytes()
    code, _, err = label("--threshold", 0.4)
    assert code == 2 and "another model or threshold" in err and "delete that file" in err
    Path("things.txt").write_text("the dog\n")
    code, _, err = label()
    assert code == 2 and "other expressions of a.png" in err and "give another --out" in err
    assert Path("coco.json").read_bytes() == before


def test_a_copy_of_the_model_is_the_same_model(tiny_model, tmp_path):
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    original = identity(load(tiny_model, device="cpu"))
    assert identity(load(copy, device="cpu")) == original
    weights = load_file(copy / "model.safetensors")
    weights["decoder.head.bias"] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert identity(load(copy, device="cpu")) != original


def test_new_and_changed_photographs_are_done_and_others_are_not(label, encoded):
    label()
    encoded.clear()
    Image.new("RGB", (32, 16), "red").save("photos/b.jpg")
    Image.new("RGB", (16, 32), "red").save("photos/new.png")
    assert label()[0] == 0
    assert encoded == ["b.jpg", "new.png"]
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in read()["images"]}
    assert sizes["b.jpg"] == (32, 16) and len(sizes) == 4


def test_somebody_s_own_file_is_not_written_into(label):
    Path("coco.labels.jsonl").write_text("my notes\n")
    code, _, err = label()
    assert code == 2 and "in the way" in err
    assert Path("coco.labels.jsonl").read_text() == "my notes\n"


def test_a_second_run_on_one_output_is_refused(label, here, segmenter):
    with Journal(Path("coco.labels.jsonl"), identity(segmenter)):
        before = Path("coco.labels.jsonl").read_bytes()
        code, out, err = label()
        assert (code, out) == (2, "") and "another run is writing to coco.labels.jsonl" in err
        assert len(err.splitlines()) == 1 and Path("coco.labels.jsonl").read_bytes() == before
    assert label()[0] == 0


def test_two_processes_on_one_output_never_mix_their_answers(here, label, tiny_model):
    """One is told to wait, the other labels every photograph as a run without company does."""
    assert label(out="alone.json")[0] == 0
    processes = [start(tiny_model) for _ in range(2)]
    ends = [(process.communicate(timeout=300), process.returncode) for process in processes]
    assert sorted(code for _, code in ends) in ([0, 2], [0, 0]), ends
    assert all("another run is writing" in err for (_, err), code in ends if code)
    assert Path("coco.json").read_bytes() == Path("alone.json").read_bytes()


def test_another_photograph_s_record_is_never_taken_for_it(here, segmenter, label):
    """A line of the same length that something else wrote over the journal while it was open."""
    label()
    path = Path("coco.labels.jsonl")
    with Journal(path, identity(segmenter)) as journal:
        record = journal["a.png"]
        path.write_bytes(path.read_bytes().replace(b'"photo": "a.png"', b'"photo": "x.png"'))
        journal.add({**record, "photo": "new.png"})
        with pytest.raises(RefsegError, match="changed by something else"):
            journal["a.png"]


@pytest.mark.parametrize(
    "line", [b'{"photo": "b.jpg"}\n', b'{"photo": ["b.jpg"], "stamp": 1, "size": 2, "results": 3}\n']
)
def test_a_line_of_a_journal_that_is_no_record_is_passed_over(label, encoded, line):
    label()
    with Path("coco.labels.jsonl").open("ab") as file:
        file.write(line)
    encoded.clear()
    assert label()[0] == 0 and encoded == []


# Bad photographs


def test_bad_photographs_are_reported_and_tried_again(label):
    Path("photos/aa.png").write_bytes(b"")
    Path("photos/z.gif").write_bytes(b"GIF89a")
    Path("photos/.hidden.png").write_bytes(b"")
    code, out, err = label()
    assert code == 1 and "2 skipped" in out
    assert "aa.png is empty" in err and "z.gif is a GIF" in err and len(err.splitlines()) == 2
    assert len(read()["images"]) == 3
    Image.new("RGB", (8, 8)).save("photos/aa.png")
    Path("photos/z.gif").unlink()
    assert label()[0] == 0 and len(read()["images"]) == 4


def test_a_photograph_that_went_bad_leaves_the_file(label):
    label()
    Path("photos/b.jpg").write_bytes(b"")
    assert label()[0] == 1
    assert [image["file_name"] for image in read()["images"]] == ["a.png", "deep/c.png"]


def test_nothing_at_all_is_2(label):
    for photo in Path("photos").rglob("*.*"):
        photo.write_bytes(b"")
    code, _, err = label()
    assert code == 2 and len(err.splitlines()) == 3 and not Path("coco.json").exists()


@pytest.mark.parametrize(
    ("line", "cure"),
    [
        ("label nowhere --expressions things.txt --out coco.json", "there is no folder nowhere"),
        ("label empty --expressions things.txt --out coco.json", "holds no photographs"),
        ("label photos --expressions nothing.txt --out coco.json", "nothing.txt"),
        ("label photos --expressions things.txt --out coco", "end it in .json"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(here, capsys, line, cure):
    (here / "empty").mkdir()
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and cure in err and len(err.splitlines()) == 1


# Whole processes


def start(tiny_model, *arguments):
    line = [sys.executable, "-m", "refseg", "label", "photos", "--expressions", "things.txt", "--out", "coco.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line += ["--model", str(tiny_model), "--device", "cpu", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_a_kill_loses_nothing_that_was_computed(here, label, tiny_model):
    for number in range(30):
        Image.effect_noise((160, 120), 40).convert("RGB").save(f"photos/{number:03}.png")
    assert label(out="whole.json")[0] == 0
    journal = Path("coco.labels.jsonl")
    process = start(tiny_model)
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 5):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = journal.read_bytes().count(b"\n") - 1
    assert 4 <= done < 33 and not Path("coco.json").exists()
    assert label()[0] == 0
    assert journal.read_bytes().count(b"\n") == 34, "no photograph was computed twice"
    assert Path("coco.json").read_bytes() == Path("whole.json").read_bytes()


@pytest.mark.slow
def test_ray_writes_the_same_bytes(here, label, tiny_model):
    pytest.importorskip("ray", reason='Ray is not installed; pip install "refseg[ray]"')
    for number in range(9):
        Image.effect_noise((120, 90), 40).convert("RGB").save(f"photos/{number}.png")
    Path("photos/bad.png").write_bytes(b"")
    assert label(out="local.json")[0] == 1
    process = start(tiny_model, "--ray")
    out, err = process.communicate(timeout=900)
    assert process.returncode == 1, err
    assert "bad.png is empty" in err and out.startswith("coco.json: ")
    assert Path("coco.json").read_bytes() == Path("local.json").read_bytes()


CLUSTER = """
import ray, sys
cluster = ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
print(cluster.address_info["gcs_address"], flush=True)
sys.stdin.readline()
print(len(ray._private.state.state.job_table()), flush=True)
"""


@pytest.mark.slow
def test_ray_joins_the_cluster_that_is_named(here, label, tiny_model, monkeypatch):
    if importlib.util.find_spec("ray") is None:
        pytest.skip('Ray is not installed; pip install "refseg[ray]"')
    assert label(out="local.json")[0] == 0
    # A token of this cluster's own, which both processes inherit: Ray reads it when it is imported.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    line = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as cluster:
        try:
            monkeypatch.setenv("RAY_ADDRESS", cluster.stdout.readline().strip())
            process = start(tiny_model, "--ray")
            _, err = process.communicate(timeout=900)
            assert process.returncode == 0, err
        finally:
            jobs, _ = cluster.communicate("\n", timeout=120)
    assert jobs.split() == ["2"], "the cluster's own and the command's"
    assert Path("coco.json").read_bytes() == Path("local.json").read_bytes()


def test_ray_that_is_missing_or_unreachable_has_a_cure(label, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = label("--ray")
    assert code == 2 and 'pip install "refseg[ray]"' in err and len(err.splitlines()) == 1
