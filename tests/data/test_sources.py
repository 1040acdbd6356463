import json
import pickle
import shutil
from pathlib import Path

import pytest
from copies import jpeg, photo_name, publish, refs, write_published

from refseg.data import rendered, sources
from refseg.data.table import Row, by_photograph, write_table
from refseg.errors import RefsegError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def renders(monkeypatch):
    """Counts how often scenes are rendered."""
    calls = []
    original = rendered.render

    def counted(folder, count, seed=0):
        calls.append((count, seed))
        return original(folder, count, seed)

    monkeypatch.setattr(rendered, "render", counted)
    return calls


def test_a_table_is_read_as_it_stands(tmp_path):
    row = Row(tmp_path / "a.png", 1, 2, 2, "the hat", "04", split="val")
    write_table(tmp_path / "x.jsonl", [row])
    assert sources.load_rows(str(tmp_path / "x.jsonl")) == [row]


def test_annotations_give_expressions_for_the_photographs_beside_them(tmp_path):
    folder = tmp_path / "mine/val"
    folder.parent.mkdir()
    path = rendered.render(folder, 3)
    rows = sources.load_rows(str(path), per_photo=5)
    groups = list(by_photograph(rows))
    assert {group[0].image for group in groups} == set((folder / "images").iterdir())
    assert all(1 <= len(group) <= 5 for group in groups)
    assert {row.split for row in rows} == {"mine/val"}


def test_typed_sentences_join_the_generated_ones_of_their_photographs(tmp_path):
    path = rendered.render(tmp_path / "mine/val", 3)
    first = json.loads(path.read_text())["annotations"][0]
    typed = tmp_path / "typed.jsonl"
    sentences = [(first["image_id"], [first["id"]], "that there"), (first["image_id"], [], "an elephant")]
    typed.write_text("".join(
        json.dumps({"image_id": photo, "annotations": ids, "expression": text}) + "\n" for photo, ids, text in sentences
    ))  # fmt: skip
    generated = sources.load_rows(str(path), per_photo=5)
    rows = sources.load_rows(f"{path}+{typed}", per_photo=5)
    assert rows[: len(generated)] == generated
    assert [(row.expression, row.kind) for row in rows[len(generated) :]] == [
        ("that there", "typed"), ("an elephant", "nothing"),
    ]  # fmt: skip
    assert {row.split for row in rows} == {"mine/val"}
    by_photo = {group[0].image_id: group for group in by_photograph(rows)}
    assert len(by_photo) == 3
    assert {"that there", "an elephant"} < {row.expression for row in by_photo[first["image_id"]]}


@pytest.mark.parametrize("spec", ["{path}+", "{path}+missing.jsonl", "missing.json+{typed}", "{path}+{typed}.csv"])
def test_sentences_that_are_not_there(tmp_path, spec):
    path = rendered.render(tmp_path / "s", 1)
    typed = tmp_path / "typed.jsonl"
    typed.write_text("")
    with pytest.raises(RefsegError, match=r"NAME\.json\+SENTENCES\.jsonl"):
        sources.load_rows(spec.format(path=path, typed=typed))


def test_the_seed_decides_the_expressions():
    def texts(seed):
        return [row.expression for row in sources.load_rows("scenes:3", seed=seed)]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_scenes_are_rendered_once_per_count_and_seed(renders, cache):
    first = sources.load_rows("scenes:2")
    assert first == sources.load_rows("scenes:2:0")
    assert renders == [(2, 0)]
    assert {row.split for row in first} == {"scenes"}
    assert all(row.image.is_relative_to(cache) and row.image.is_file() for row in first)
    sources.load_rows("scenes:2:1")
    sources.load_rows("scenes:3")
    assert renders == [(2, 0), (2, 1), (3, 0)]


def test_scenes_offer_every_kind_of_expression():
    rows = sources.load_rows("scenes:40")
    kinds = {row.kind for row in rows}
    assert kinds >= {"category", "colour", "position", "size", "ordinal", "relation", "stuff", "several"}
    assert sum(row.siblings > 0 for row in rows) > len(rows) / 4


def test_a_newer_renderer_renders_anew(renders, monkeypatch):
    sources.load_rows("scenes:1")
    monkeypatch.setattr(rendered, "VERSION", rendered.VERSION + 1)
    sources.load_rows("scenes:1")
    assert len(renders) == 2


def test_two_processes_may_render_the_same_scenes(tmp_path, monkeypatch):
    other = rendered.render(tmp_path / "other", 2)
    original = rendered.render

    def beaten(folder, count, seed=0):
        shutil.copytree(other.parent, folder)
        return original(folder, count, seed)

    monkeypatch.setattr(rendered, "render", beaten)
    assert sources.load_rows("scenes:2")


def test_an_unwritable_cache_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "file"))
    with pytest.raises(RefsegError, match="cannot be written"):
        sources.load_rows("scenes:1")


def test_without_the_variable_the_cache_is_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("REFSEG_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    rows = sources.load_rows("scenes:1")
    assert rows[0].image.is_relative_to(tmp_path / ".cache/refseg")


@pytest.mark.parametrize("spec", ["scenes:", "scenes:0", "scenes:ten", "scenes:-3", "scenes:5:x", "scenes:5:1:2"])
def test_scenes_that_cannot_be_meant(spec, cache):
    with pytest.raises(RefsegError, match="scenes:COUNT"):
        sources.load_rows(spec)
    assert not cache.exists()


@pytest.mark.parametrize("spec", ["", "photos/", "table.csv", "missing.jsonl", "missing.json"])
def test_what_is_no_data_is_told_what_is(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefsegError, match=r"\.jsonl.*\.json.*scenes:COUNT"):
        sources.load_rows(spec)


def test_annotations_without_photographs(tmp_path):
    path = rendered.render(tmp_path / "s", 1)
    shutil.rmtree(tmp_path / "s/images")
    with pytest.raises(RefsegError, match="no folder images/"):
        sources.load_rows(str(path))


def test_annotations_without_segments(tmp_path):
    path = rendered.render(tmp_path / "s", 1)
    document = json.loads(path.read_text(encoding="utf-8")) | {"annotations": []}
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(RefsegError):
        sources.load_rows(str(path))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A copy of UNC under $REFSEG_DATA."""
    write_published(tmp_path / "datasets")
    monkeypatch.setenv("REFSEG_DATA", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def test_a_published_split(root, monkeypatch, caplog):
    publish(monkeypatch)
    rows = sources.load_rows("unc:val")
    assert [row.expression for row in rows] == ["left man 3", "the person on the left 3"]
    assert rows == sources.load_rows("refcoco:val")
    assert not caplog.records


def test_every_name_of_the_datasets(root, monkeypatch):
    write_published(root, "refcoco+")
    write_published(root, "refcocog", "umd")
    write_published(root, "refcocog", "google")
    for spec, expected in {
        "unc:testA": 2,
        "unc+:testB": 2,
        "gref-umd:test": 4,
        "gref-google:val": 4,
        "gref:val": 4,
    }.items():
        assert len(sources.load_rows(spec)) == expected


def test_what_is_left_out_of_a_split_is_logged(root, caplog):
    for name in (100, 101):
        (root / "images/mscoco/images/train2014" / photo_name(name)).write_bytes(jpeg((9, 9)))
    assert len(sources.load_rows("unc:train")) == 2
    messages = [record.getMessage() for record in caplog.records]
    assert any("has 6 expressions and the published split 120624" in message for message in messages)
    assert any("4 expressions skipped, mask of another size than the photograph" in message for message in messages)


def test_a_copy_that_mixes_partitions_is_refused(root, monkeypatch):
    publish(monkeypatch)
    (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps([ref | {"split": "val"} for ref in refs()]))
    with pytest.raises(RefsegError, match="unc:val has 6 referents and the published split 1; this copy mixes"):
        sources.load_rows("unc:val")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("unc", "several splits; write unc:"),
        ("refcoco", "several splits; write unc:"),
        ("unc:", "several splits; write unc:"),
        ("unc:dev", "no split 'dev'; one of: train, val, testA, testB"),
        ("gref-google:test", "no split 'test'; one of: train, val"),
        ("referit:val", r"holds no copy of ReferIt"),
        ("coco:val", r"names no data; .*unc:val"),
        ("unc++:val", r"names no data; .*unc\+"),
    ],
)
def test_datasets_and_splits_that_there_are_not(root, spec, message):
    with pytest.raises(RefsegError, match=message):
        sources.load_rows(spec)


def test_wrong_roots(root, tmp_path, monkeypatch):
    (root / "images").rename(root / "elsewhere")
    with pytest.raises(RefsegError, match=r"nothing of unc:val .* photograph missing.* refseg data verify unc"):
        sources.load_rows("unc:val")
    monkeypatch.setenv("REFSEG_DATA", str(tmp_path / "absent"))
    with pytest.raises(RefsegError, match="there is no folder"):
        sources.load_rows("unc:val")
    monkeypatch.delenv("REFSEG_DATA")
    with pytest.raises(RefsegError, match="set REFSEG_DATA"):
        sources.load_rows("unc:val")


def test_a_table_may_be_called_like_a_dataset(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    row = Row(Path("a.png"), 1, 2, 2, "the hat", "04", split="val")
    write_table(Path("unc.jsonl"), [row])
    assert sources.load_rows("unc.jsonl") == [row]


@pytest.mark.data
def test_photographs_of_the_shared_folder():
    path = Path(__file__).parents[2] / "../shared/data/photos-coco/val/instances.json"
    if not path.is_file():
        pytest.skip("needs ../shared/data/photos-coco beside the checkout")
    rows = sources.load_rows(str(path), per_photo=2)
    assert {row.split for row in rows} == {"photos-coco/val"}
    assert len(rows) > 50
    assert all(row.image.is_file() for row in rows)
