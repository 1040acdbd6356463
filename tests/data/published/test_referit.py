import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from copies import HEIGHT, WIDTH, jpeg, square_mask, write_referit
from PIL import Image

from refseg.data.published.audit import count
from refseg.data.published.catalogue import DATASETS
from refseg.data.published.referents import make_rows
from refseg.data.published.referit import read_referit
from refseg.data.segmentations import Reason
from refseg.errors import RefsegError

scipy_io = pytest.importorskip("scipy.io")

REFERIT = DATASETS["referit"]
SHARED = Path(__file__).parents[3] / "../shared/data/expressions/referit"


def read(root):
    return read_referit(REFERIT, root)


def rows_of(root, split="test"):
    rows, skips = make_rows(read(root), split)
    assert not skips
    return rows


@pytest.mark.parametrize("masks", ["mat", "png"])
def test_query_files_and_masks(tmp_path, masks):
    place = write_referit(tmp_path, masks)
    rows = rows_of(tmp_path)
    assert [row.expression for row in rows] == ["sky", "anything but the sky", "sky"]
    assert [row.segment_ids for row in rows] == [(1,), (1,), (2,)]
    for row in rows:
        assert (row.image, row.image_id, row.split) == (place / "images/16.jpg", 16, "referit:test")
        assert (row.height, row.width) == (HEIGHT, WIDTH)
        assert (row.mask() == square_mask(3 * row.segment_ids[0], 4)).all()


def test_trainval_is_train_and_val_where_its_file_is_missing(tmp_path):
    place = write_referit(tmp_path)
    assert {row.image_id for row in rows_of(tmp_path, "trainval")} == {38685, 30993}
    own = {"30993_1": ["only this"]}
    (place / "data/referit_query_trainval.json").write_text(json.dumps(own))
    assert [row.expression for row in rows_of(tmp_path, "trainval")] == ["only this"]


def test_layouts_that_people_have(tmp_path):
    write_referit(tmp_path / "a")
    flat = tmp_path / "flat"
    shutil.copytree(tmp_path / "a/referit", flat)
    for file in (flat / "data").iterdir():
        shutil.move(file, flat)
    assert len(rows_of(flat)) == 3
    cloned = tmp_path / "exp-referit"
    shutil.copytree(tmp_path / "a/referit/data", cloned / "data")
    for folder in ("images", "mask"):
        shutil.copytree(tmp_path / "a/referit" / folder, cloned / "referit-dataset" / folder)
    assert len(rows_of(tmp_path)) == 3


def test_older_query_files_name_pictures(tmp_path):
    place = write_referit(tmp_path)
    (place / "data/referit_query_test.json").write_text('{"16_2.png": ["sky"]}')
    assert [row.segment_ids for row in rows_of(tmp_path)] == [(2,)]


def test_a_sentence_of_punctuation_is_scored_as_the_others_are(tmp_path):
    place = write_referit(tmp_path)
    (place / "data/referit_query_test.json").write_text('{"16_2": ["...", "", "sky "]}')
    rows, (skip,) = make_rows(read(tmp_path), "test")
    assert [row.expression for row in rows] == ["...", "sky"]
    assert skip.reason == Reason.NO_WORDS


FAULTS = {
    Reason.NO_PHOTOGRAPH: lambda place: (place / "images/16.jpg").unlink(),
    Reason.SIZE: lambda place: (place / "images/16.jpg").write_bytes(jpeg((WIDTH, HEIGHT - 1))),
    Reason.NO_MASK: lambda place: [(place / f"mask/16_{n}.mat").unlink() for n in (1, 2)],
    Reason.DAMAGED: lambda place: [(place / f"mask/16_{n}.mat").write_bytes(b"MATLAB 5.0") for n in (1, 2)],
    Reason.EMPTY: lambda place: [
        scipy_io.savemat(place / f"mask/16_{n}.mat", {"segimg_t": np.full((HEIGHT, WIDTH), 65)}) for n in (1, 2)
    ],
}


@pytest.mark.parametrize("reason", FAULTS)
def test_what_cannot_be_used_is_counted_and_the_rest_kept(tmp_path, reason):
    FAULTS[reason](write_referit(tmp_path))
    rows, skips = make_rows(read(tmp_path), "test")
    assert rows == []
    assert Counter(skip.reason for skip in skips) == {reason: 2}
    assert sum(skip.expressions for skip in skips) == 3
    assert skips[0].item.startswith("16.jpg, segment 1")
    assert len(rows_of(tmp_path, "train")) == 3


@pytest.mark.parametrize(
    "content", [{"other": np.zeros((2, 2))}, {"segimg_t": "text"}, {"segimg_t": np.zeros((HEIGHT, WIDTH, 3))}]
)
def test_a_mat_file_of_something_else(tmp_path, content):
    place = write_referit(tmp_path)
    scipy_io.savemat(place / "mask/16_1.mat", content)
    _, skips = make_rows(read(tmp_path), "test")
    assert [skip.reason for skip in skips] == [Reason.DAMAGED]


def test_a_mat_file_of_objects(tmp_path):
    place = write_referit(tmp_path)
    cells = np.empty((HEIGHT, WIDTH), dtype=object)
    cells[:] = "x"
    scipy_io.savemat(place / "mask/16_1.mat", {"segimg_t": cells})
    _, skips = make_rows(read(tmp_path), "test")
    assert [skip.reason for skip in skips] == [Reason.DAMAGED]


def test_a_mask_far_larger_than_its_photograph_is_not_decoded(tmp_path, monkeypatch):
    place = write_referit(tmp_path)
    scipy_io.savemat(place / "mask/16_1.mat", {"segimg_t": np.zeros((2000, 2000), np.uint8)}, do_compression=True)
    opened = []
    original = scipy_io.loadmat
    monkeypatch.setattr(scipy_io, "loadmat", lambda path, **more: opened.append(path.name) or original(path, **more))
    _, (skip,) = make_rows(read(tmp_path), "test")
    assert skip.reason == Reason.SIZE and "2000×2000 for 32×24" in skip.item
    assert opened == ["16_2.mat"]


def test_wrong_roots_and_half_copies(tmp_path):
    with pytest.raises(RefsegError, match="there is no folder"):
        read(tmp_path / "absent")
    with pytest.raises(RefsegError, match=r"no copy of ReferIt .* referitdata"):
        read(tmp_path)
    place = write_referit(tmp_path)
    shutil.rmtree(place / "mask")
    with pytest.raises(RefsegError, match=r"half a copy: .* mask/ is not"):
        read(tmp_path)
    shutil.rmtree(place / "data")
    (place / "refs(berkeley).p").write_bytes(b"")
    with pytest.raises(RefsegError, match="another cut than the paper's"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"16_1": "sky"}', '{"../16_1": ["sky"]}', '{"16": ["sky"]}'])
def test_damaged_query_files(tmp_path, content):
    place = write_referit(tmp_path)
    (place / "data/referit_query_test.json").write_text(content)
    with pytest.raises(RefsegError, match=r"referit_query_test\.json.* get a new copy"):
        read(tmp_path)


def test_without_scipy_its_cure_is_named(tmp_path, monkeypatch):
    write_referit(tmp_path)
    copy = read(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    with pytest.raises(RefsegError, match=r"pip install 'refseg\[data\]'"):
        make_rows(copy, "test")


@pytest.mark.data
def test_the_published_expressions(tmp_path):
    """The real texts, each segment's mask its published box, on the one photograph that is given its size."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data/expressions/referit beside the checkout")
    (tmp_path / "referit/mask").mkdir(parents=True)
    (tmp_path / "referit/images").mkdir()
    for file in SHARED.glob("referit_query_*.json"):
        shutil.copy(file, tmp_path / "referit")
    boxes = json.loads((SHARED / "referit_bbox.json").read_text())
    width, height = json.loads((SHARED / "referit_imsize.json").read_text())["30993.jpg"]
    Image.new("RGB", (width, height)).save(tmp_path / "referit/images/30993.jpg")
    own = {name: box for name, box in boxes.items() if name.startswith("30993_")}
    for name, (left, top, right, bottom) in own.items():
        outside = np.full((height, width), 65.0)
        outside[top : bottom + 1, left : right + 1] = 0
        scipy_io.savemat(tmp_path / f"referit/mask/{name}.mat", {"segimg_t": outside})
    copy = read(tmp_path)
    for split, published in REFERIT.splits.items():
        assert count(copy.of(split)) == published
    rows, skips = make_rows(copy, "test")
    assert len(rows) + sum(skip.expressions for skip in skips) == 60_105
    assert {skip.reason for skip in skips} == {Reason.NO_PHOTOGRAPH}
    assert {row.image_id for row in rows} == {30993}
    assert "tallest bldng" in [row.expression for row in rows if row.segment_ids == (2,)]
    for row in rows:
        left, top, right, bottom = own[f"30993_{row.segment_ids[0]}"]
        assert row.mask().sum() == (right - left + 1) * (bottom - top + 1)
