"""From COCO's own files and ids to the folder that the sentences speak of."""

import json
from pathlib import Path

import pytest
from PIL import Image

from refseg.data.sources import load_rows
from refseg.errors import RefsegError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def make_photos(tool):
    return tool("coco_photos").make_photos


def box(left):
    return [[left, 4, left + 9, 4, left + 9, 20, left, 20]]


@pytest.fixture
def coco(tmp_path):
    """Three photographs; of photograph 5 the segments 900 and 7, of 6 the segment 901."""
    (tmp_path / "train2017").mkdir()
    for photo in (5, 6, 8):
        Image.new("RGB", (32, 24), "grey").save(tmp_path / f"train2017/{photo}.png")
    segments = [(7, 5, 2), (900, 5, 18), (901, 6, 2), (3, 8, 2)]
    document = {
        "images": [{"id": photo, "file_name": f"{photo}.png", "width": 32, "height": 24} for photo in (5, 6, 8)],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [
            {"id": identity, "image_id": photo, "category_id": 1, "segmentation": box(left)}
            for identity, photo, left in segments
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(document))
    lines = [
        {"image_id": 5, "annotations": [7], "coco_ids": [900], "expression": "right dog"},
        {"image_id": 6, "annotations": [], "coco_ids": [], "expression": "a cat"},
    ]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_segments_get_the_ids_of_the_sentences(coco, make_photos):
    path = make_photos(coco / "s.jsonl", coco / "coco.json", coco / "train2017", coco / "data/train")
    segments = json.loads(path.read_text())["annotations"]
    assert {segment["coco_id"]: segment["id"] for segment in segments} == {900: 7, 7: 8, 901: 9}
    assert {photo.name for photo in (path.parent / "images").iterdir()} == {"5.png", "6.png"}
    typed = {row.expression: row for row in load_rows(f"{path}+{coco / 's.jsonl'}") if row.kind in ("typed", "nothing")}
    assert typed["right dog"].mask().nonzero()[1].min() == 18 and not typed["a cat"].mask().any()


def test_what_is_missing_is_named(coco, make_photos):
    folders = (coco / "coco.json", coco / "train2017", coco / "out")
    (coco / "plain.jsonl").write_text('{"image_id": 5, "annotations": [7], "expression": "dog"}\n')
    with pytest.raises(RefsegError, match="has no coco_ids"):
        make_photos(coco / "plain.jsonl", *folders)
    (coco / "other.jsonl").write_text('{"image_id": 5, "annotations": [7], "coco_ids": [4], "expression": "dog"}\n')
    with pytest.raises(RefsegError, match="lacks 4, which the sentences name"):
        make_photos(coco / "other.jsonl", *folders)
    (coco / "train2017/6.png").unlink()
    with pytest.raises(RefsegError, match=r"6\.png cannot be copied"):
        make_photos(coco / "s.jsonl", *folders)
    assert not (coco / "out").exists()
    (coco / "out").mkdir()
    with pytest.raises(RefsegError, match="exists; name a new folder"):
        make_photos(coco / "s.jsonl", *folders)


@pytest.mark.data
def test_the_committed_ids_are_those_of_the_photographs():
    """Where the photographs are at hand, the two kinds of ids in sentences/ agree."""
    for name in ("train", "val"):
        instances = ROOT / f"../shared/data/photos-coco-things/{name}/instances.json"
        if not instances.exists():
            pytest.skip(f"{instances} is absent")
        coco = {one["id"]: one["coco_id"] for one in json.loads(instances.read_text())["annotations"]}
        for line in (ROOT / f"sentences/photos-coco-things-{name}.jsonl").read_text().splitlines():
            sentence = json.loads(line)
            assert [coco[identity] for identity in sentence["annotations"]] == sentence["coco_ids"], line
