import contextlib
import json
import pickle
import shutil

import numpy as np
import pytest
from copies import (
    HEIGHT,
    WIDTH,
    instances,
    jpeg,
    photo_name,
    refs,
    square,
    square_mask,
    write_photographs,
    write_published,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from refseg.data.published.catalogue import DATASETS, find_dataset
from refseg.data.published.refer import read_refer
from refseg.data.published.referents import make_rows
from refseg.data.segmentations import Reason, Unusable, encode_segmentation
from refseg.errors import RefsegError
from refseg.photo import read_photo

UNC = DATASETS["unc"]


def read(root, name="unc", **more):
    return read_refer(DATASETS[name], root, **more)


def rows_of(root, split="val", name="unc"):
    rows, skips = make_rows(read(root, name), split)
    assert not skips
    return rows


def change(place, edit):
    """Rewrites instances.json."""
    file = place / "instances.json"
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))


def annotation_of(document, segment_id):
    return next(a for a in document["annotations"] if a["id"] == segment_id)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_published_files(tmp_path, protocol):
    write_published(tmp_path, protocol=protocol)
    rows = rows_of(tmp_path)
    assert [row.expression for row in rows] == ["left man 3", "the person on the left 3"]
    for row in rows:
        assert row.image == tmp_path / "images/mscoco/images/train2014" / photo_name(103)
        assert (row.image_id, row.segment_ids, row.label, row.siblings) == (103, (1030,), "person", 1)
        assert (row.height, row.width, row.split) == (HEIGHT, WIDTH, "unc:val")
        assert (row.mask() == square_mask(2, 5)).all()
    assert [len(rows_of(tmp_path, split)) for split in ("train", "testA", "testB")] == [6, 2, 2]


@pytest.mark.parametrize(
    ("name", "folder", "partition", "split", "expected"),
    [
        ("unc+", "refcoco+", "unc", "testB", 2),
        ("gref-umd", "refcocog", "umd", "test", 4),
        ("gref-google", "refcocog", "google", "val", 4),
    ],
)
def test_every_dataset_and_partition(tmp_path, name, folder, partition, split, expected):
    write_published(tmp_path, folder, partition)
    assert len(rows_of(tmp_path, split, name)) == expected


@pytest.mark.parametrize(
    ("annotations", "photographs"),
    [
        ("refcoco", "train2014"),
        ("data/refcoco", "images/train2014"),
        ("refer/data/refcoco", "coco/train2014"),
        ("RefCOCO", "coco/images/train2014"),
    ],
)
def test_layouts_that_people_have(tmp_path, annotations, photographs):
    write_published(tmp_path / "as published")
    for source, target in (("refcoco", annotations), ("images/mscoco/images/train2014", photographs)):
        (tmp_path / "root" / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(tmp_path / "as published" / source, tmp_path / "root" / target)
    assert len(rows_of(tmp_path / "root")) == 2


def test_the_root_may_be_the_datasets_own_folder(tmp_path):
    place = write_published(tmp_path)
    assert len(rows_of(place)) == 2


def test_photographs_under_their_name_of_2017(tmp_path):
    write_published(tmp_path)
    folder = tmp_path / "images/mscoco/images/train2014"
    for path in list(folder.iterdir()):
        path.rename(path.with_name(path.name.removeprefix("COCO_train2014_")))
    folder.rename(tmp_path / "train2017")
    assert rows_of(tmp_path)[0].image == tmp_path / "train2017/000000000103.jpg"


def test_references_as_json(tmp_path):
    place = write_published(tmp_path)
    (place / "refs(unc).p").unlink()
    (place / "refs(unc).json").write_text(json.dumps(refs()))
    assert len(rows_of(tmp_path)) == 2


def uncompressed(mask):
    """COCO's run lengths as a list, down the columns, outside first."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


@pytest.mark.parametrize("form", ["list", "text"])
def test_run_lengths_of_crowds(tmp_path, form):
    place = write_published(tmp_path)
    mask = square_mask(0, 0) | square_mask(20, 10)
    rle = uncompressed(mask)
    if form == "text":
        rle["counts"] = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    change(place, lambda d: annotation_of(d, 1030).update(segmentation=rle, iscrowd=1))
    assert (rows_of(tmp_path)[0].mask() == mask).all()


@given(arrays(bool, (HEIGHT, WIDTH), elements=st.booleans()) | st.binary(max_size=30))
@settings(max_examples=60, deadline=None)
def test_compressed_run_lengths_are_right_or_refused(mask):
    """Crafted ones end the process where they reach pycocotools unchecked."""
    if isinstance(mask, bytes):
        text = bytes(48 + b % 64 for b in mask)
        with contextlib.suppress(Unusable):
            counts = encode_segmentation({"size": [HEIGHT, WIDTH], "counts": text}, (HEIGHT, WIDTH))
            assert coco_mask.decode(counts).shape == (HEIGHT, WIDTH)
        return
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert (coco_mask.decode(encode_segmentation(rle, (HEIGHT, WIDTH))) == mask).all()
    with pytest.raises(Unusable):
        encode_segmentation(rle, (HEIGHT - 1, WIDTH))


@pytest.mark.parametrize("counts", ["P", "`", "o" * 40, "0", "0" * 900, "ÿ", "\n", "PPYo1"])
def test_crafted_run_lengths_are_refused(counts):
    with pytest.raises(Unusable):
        encode_segmentation({"size": [HEIGHT, WIDTH], "counts": counts}, (HEIGHT, WIDTH))


def test_a_mask_of_several_polygons(tmp_path):
    place = write_published(tmp_path)
    change(place, lambda d: annotation_of(d, 1030).update(segmentation=square(1, 1) + square(20, 10)))
    assert (rows_of(tmp_path)[0].mask() == (square_mask(1, 1) | square_mask(20, 10))).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_turns_its_mask(tmp_path, orientation):
    write_published(tmp_path)
    path = tmp_path / "images/mscoco/images/train2014" / photo_name(103)
    path.write_bytes(jpeg(orientation=orientation))
    (row, _) = rows_of(tmp_path)
    assert (row.width, row.height) == read_photo(path).size
    marked = Image.fromarray(square_mask(2, 5).astype(np.uint8))
    marked.getexif()[0x0112] = orientation
    assert (row.mask() == np.asarray(ImageOps.exif_transpose(marked))).all()


def test_an_annotation_of_the_photograph_as_displayed_is_not_turned(tmp_path):
    write_published(tmp_path)
    path = tmp_path / "images/mscoco/images/train2014" / photo_name(103)
    path.write_bytes(jpeg((HEIGHT, WIDTH), orientation=6))  # stored upright as 24×32, displayed as 32×24
    (row, _) = rows_of(tmp_path)
    assert (row.mask() == square_mask(2, 5)).all()


FAULTS = {
    Reason.NO_PHOTOGRAPH: lambda place, photo: photo.unlink(),
    Reason.UNREADABLE: lambda place, photo: photo.write_bytes(b"half a"),
    Reason.NO_MASK: lambda place, photo: change(place, lambda d: d["annotations"].remove(annotation_of(d, 1030))),
    Reason.DAMAGED: lambda place, photo: change(
        place, lambda d: annotation_of(d, 1030).update(segmentation=[[1, 2, 3]])
    ),
    Reason.SIZE: lambda place, photo: photo.write_bytes(jpeg((WIDTH, HEIGHT + 1))),
    Reason.EMPTY: lambda place, photo: change(
        place, lambda d: annotation_of(d, 1030).update(segmentation=square(5, 5, 0))
    ),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_what_cannot_be_used_is_counted_and_named_and_the_rest_kept(tmp_path, reason):
    place = write_published(tmp_path)
    FAULTS[reason](place, tmp_path / "images/mscoco/images/train2014" / photo_name(103))
    rows, (skip,) = make_rows(read(tmp_path), "val")
    assert rows == []
    assert (skip.reason, skip.expressions) == (reason, 2)
    assert skip.item.startswith(f"{photo_name(103)}, segment 1030")
    assert len(rows_of(tmp_path, "train")) == 6


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        [[]],
        [[1, 2, 3, 4, 5]],
        [["a"] * 6],
        [[1, 2, 3, float("nan"), 5, 6]],
        [[0, 0, 1e12, 0, 1e12, 1e12]],
        [[0, 0, 10, 0, None, 5]],
        "0123",
        7,
        {"counts": [1]},
        {"size": [HEIGHT, WIDTH], "counts": [5, 5]},
        {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH + 5, -5]},
        {"size": [HEIGHT, WIDTH], "counts": "no run lengths"},
        {"size": [HEIGHT, WIDTH], "counts": None},
        {"size": [HEIGHT], "counts": [HEIGHT]},
        {"size": [1 << 20, 1 << 20], "counts": [1 << 40]},
    ],
)
def test_no_mask_at_all_breaks_the_reader(tmp_path, segmentation):
    place = write_published(tmp_path)
    change(place, lambda d: annotation_of(d, 1030).update(segmentation=segmentation))
    rows, (skip,) = make_rows(read(tmp_path), "val")
    assert rows == [] and skip.reason in (Reason.NO_MASK, Reason.DAMAGED, Reason.SIZE)


def test_an_expression_without_words_is_listed(tmp_path):
    place = write_published(tmp_path)
    changed = refs()
    changed[3]["sentences"][0]["sent"] = " \t"
    (place / "refs(unc).p").write_bytes(pickle.dumps(changed))
    rows, (skip,) = make_rows(read(tmp_path), "val")
    assert [row.expression for row in rows] == ["the person on the left 3"]
    assert (skip.reason, skip.expressions) == (Reason.NO_WORDS, 1)


# ---------------------------------------------------------------- wrong roots and half copies


def test_a_root_that_is_none(tmp_path):
    with pytest.raises(RefsegError, match="there is no folder"):
        read(tmp_path / "absent")


def test_a_root_without_the_dataset_says_where_to_get_it(tmp_path):
    with pytest.raises(RefsegError, match=r"no copy of UNC .* refs\(unc\)\.p .*2014 Train images.* lichengunc/refer"):
        read(tmp_path)


def test_a_copy_of_another_partition(tmp_path):
    write_published(tmp_path, "refcocog", "google")
    with pytest.raises(RefsegError, match=r"has refs\(google\)\.p but no refs\(umd\)\.p"):
        read(tmp_path, "gref-umd")


def test_half_a_copy(tmp_path):
    place = write_published(tmp_path)
    (place / "instances.json").unlink()
    with pytest.raises(RefsegError, match=r"half a copy: refs\(unc\)\.p is there and instances\.json is not"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"images": [', b"[]", b'{"images": []}', b"[" * 100_000])
def test_instances_cut_short(tmp_path, content):
    place = write_published(tmp_path)
    (place / "instances.json").write_bytes(content)
    with pytest.raises(RefsegError, match=r"instances\.json .* get a new copy"):
        read(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda ref: ref.pop("ann_id"),
        lambda ref: ref.update(sentences=None),
        lambda ref: ref.update(sentences=[{"raw": "x"}]),
        lambda ref: ref.update(image_id=[1]),
        lambda ref: ref.update(split="testC"),
    ],
)
def test_references_that_are_not_as_published(tmp_path, damage):
    place = write_published(tmp_path)
    changed = refs()
    damage(changed[2])
    (place / "refs(unc).p").write_bytes(pickle.dumps(changed))
    with pytest.raises(RefsegError, match=r"refs\(unc\)\.p.* get a new copy"):
        read(tmp_path)


@pytest.mark.parametrize("content", [{}, [], "refs", [1]])
def test_a_pickle_of_something_else(tmp_path, content):
    place = write_published(tmp_path)
    (place / "refs(unc).p").write_bytes(pickle.dumps(content))
    with pytest.raises(RefsegError, match=r"refs\(unc\)\.p"):
        read(tmp_path)


def test_an_unknown_split_lists_the_splits(tmp_path):
    write_published(tmp_path)
    with pytest.raises(RefsegError, match="no split 'test'; one of: train, val, testA, testB"):
        make_rows(read(tmp_path), "test")


def test_names(tmp_path):
    assert find_dataset("RefCOCO+").name == "unc+"
    assert find_dataset("gref").name == "gref-google"
    with pytest.raises(RefsegError, match="no dataset 'coco'; one of: unc, unc"):
        find_dataset("coco")


# ---------------------------------------------------------------- conversions


def write_cris(root):
    (root / "anns/refcoco").mkdir(parents=True)
    (root / "masks/refcoco").mkdir(parents=True)
    for split in ("train", "val", "testA", "testB"):
        entries = []
        for ref in refs():
            if ref["split"] == split:
                sentences = [
                    {"idx": n, "sent_id": s["sent_id"], "sent": s["sent"]} for n, s in enumerate(ref["sentences"])
                ]
                entries.append({
                    "bbox": [2, 5, 8, 11], "cat": 0, "segment_id": ref["ref_id"],
                    "img_name": photo_name(ref["image_id"]), "sentences": sentences, "sentences_num": 2,
                })  # fmt: skip
                mask = square_mask(2, 5).astype(np.uint8) * 255
                Image.fromarray(mask).save(root / f"masks/refcoco/{ref['ref_id']}.png")
        (root / f"anns/refcoco/{split}.json").write_text(json.dumps(entries))
    write_photographs(root / "images/train2014")


def same_as_published(rows, published):
    return [(r.image_id, r.expression, r.counts, r.split) for r in rows] == [
        (r.image_id, r.expression, r.counts, r.split) for r in published
    ]


@pytest.fixture
def published(tmp_path):
    write_published(tmp_path / "published")
    return {split: rows_of(tmp_path / "published", split) for split in UNC.splits}


def test_cris(tmp_path, published):
    write_cris(tmp_path / "root")
    for split in UNC.splits:
        assert same_as_published(rows_of(tmp_path / "root", split), published[split])


def test_cris_without_masks(tmp_path):
    write_cris(tmp_path)
    (tmp_path / "masks/refcoco/3.png").unlink()
    _, (skip,) = make_rows(read(tmp_path), "val")
    assert skip.reason == Reason.NO_MASK
    shutil.rmtree(tmp_path / "masks")
    with pytest.raises(RefsegError, match="masks are missing"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '[{"img_name": "a.jpg"}]'])
def test_cris_damaged(tmp_path, content):
    write_cris(tmp_path)
    (tmp_path / "anns/refcoco/val.json").write_text(content)
    with pytest.raises(RefsegError, match=r"val\.json"):
        read(tmp_path)


def jxu_rows(split):
    document = instances()
    images = {image["id"]: image for image in document["images"]}
    for ref in refs():
        if ref["split"] == split:
            yield {
                **ref,
                "raw_anns": json.dumps(annotation_of(document, ref["ann_id"])),
                "raw_image_info": json.dumps(images[ref["image_id"]]),
                "raw_sentences": json.dumps(ref["sentences"]),
                "image_path": f"coco/train2014/{photo_name(ref['image_id'])}",
                "bbox": [2.0, 5.0, 8.0, 11.0],
                "captions": [s["raw"] for s in ref["sentences"]],
            }


def lmms_rows(split):
    for ref in refs():
        if ref["split"] == split:
            yield {
                "question_id": str(ref["ref_id"]),
                "image": {"bytes": jpeg(), "path": None},
                "question": "Please describe the area.",
                "answer": [s["sent"] for s in ref["sentences"]],
                "segmentation": [float(x) for x in square(2, 5)[0]],
                "bbox": [2.0, 5.0, 6.0, 6.0],
                "iscrowd": 0,
                "file_name": ref["file_name"],
            }


def benchmark_rows(split):
    document = instances()
    for ref in refs():
        if ref["split"] == split:
            image = next(i for i in document["images"] if i["id"] == ref["image_id"])
            pair = {"ann_info": annotation_of(document, ref["ann_id"]), "ref_info": ref}
            yield {"ref_list": [pair], "image_info": image, "image": {"bytes": jpeg(), "path": None}}


def write_parquet(path, rows):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(list(rows)), path)


HUB = {"train": "train", "val": "validation", "testA": "test", "testB": "testB"}


def test_parquet_with_json_inside(tmp_path, published):
    root = tmp_path / "root"
    for split, name in HUB.items():
        write_parquet(root / f"refcoco/data/{name}-00000-of-00001-0f.parquet", jxu_rows(split))
    write_photographs(root / "train2014")
    for split in UNC.splits:
        assert same_as_published(rows_of(root, split), published[split])


def test_json_lines_of_the_same(tmp_path, published):
    root = tmp_path / "root"
    (root / "refcoco").mkdir(parents=True)
    (root / "refcoco/validation.jsonl").write_text("\n".join(map(json.dumps, jxu_rows("val"))))
    (root / "refcoco/testB.json").write_text(json.dumps(list(jxu_rows("testB"))))
    write_photographs(root / "train2014")
    for split in ("val", "testB"):
        assert same_as_published(rows_of(root, split), published[split])


def test_parquet_with_photographs_inside(tmp_path, published):
    root = tmp_path / "root"
    for split in ("val", "testA", "testB"):
        write_parquet(root / f"RefCOCO/data/{split}-00000-of-00001.parquet", lmms_rows(split))
    write_parquet(root / "RefCOCO/data/test-00000-of-00001.parquet", lmms_rows("train"))
    copy = read(root, unpack=tmp_path / "unpacked")
    for split in ("val", "testA", "testB"):
        rows, skips = make_rows(copy, split)
        assert same_as_published(rows, published[split]) and not skips
    assert any("one flat polygon" in note for note in copy.notes)
    assert any("test-00000-of-00001.parquet is of no split" in note for note in copy.notes)
    assert rows[0].image == tmp_path / "unpacked" / photo_name(105)
    assert read_photo(rows[0].image).size == (WIDTH, HEIGHT)
    assert not read(root).photographs.folders


def test_photographs_at_hand_are_not_unpacked(tmp_path):
    write_parquet(tmp_path / "refcoco/data/val-00000-of-00001.parquet", lmms_rows("val"))
    write_photographs(tmp_path / "train2014")
    make_rows(read(tmp_path, unpack=tmp_path / "unpacked"), "val")
    assert not (tmp_path / "unpacked").exists()


def test_an_embedded_photograph_stays_inside_its_folder(tmp_path):
    row = next(lmms_rows("val")) | {"file_name": "../../COCO_train2014_000000000103_1030.jpg"}
    write_parquet(tmp_path / "root/refcoco/val.parquet", [row])
    read(tmp_path / "root", unpack=tmp_path / "unpacked")
    assert {path.name for path in tmp_path.iterdir()} == {"root", "unpacked"}
    assert [path.name for path in (tmp_path / "unpacked").iterdir()] == [photo_name(103)]


def test_the_benchmark_of_photographs(tmp_path, published):
    for split in ("val", "testA", "testB"):
        path = tmp_path / f"root/refcoco-benchmark/data/refcoco_unc_{split}-00000-of-00001-0f.parquet"
        write_parquet(path, benchmark_rows(split))
    write_parquet(tmp_path / "root/refcoco-benchmark/data/refcocog_umd_val-0.parquet", [])
    copy = read(tmp_path / "root", unpack=tmp_path / "unpacked")
    for split in ("val", "testA", "testB"):
        assert same_as_published(make_rows(copy, split)[0], published[split])


def test_columns_of_no_known_conversion(tmp_path):
    write_parquet(tmp_path / "refcoco/val.parquet", [{"image_id": 1, "bbox": [1.0], "caption": "x"}])
    with pytest.raises(RefsegError, match="of no conversion that is known"):
        read(tmp_path)


def test_a_damaged_parquet_file(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco/val.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(RefsegError, match="damaged or cut short"):
        read(tmp_path)


def test_without_pyarrow_its_cure_is_named(tmp_path, monkeypatch):
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco/val.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(RefsegError, match=r"pip install 'refseg\[data\]'"):
        read(tmp_path)
