import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refseg.data.table import Row, by_photograph, read_table, write_table
from refseg.errors import RefsegError
from refseg.masks import encode_mask

MASK = np.array([[0, 1, 1], [0, 0, 1]], dtype=bool)


def row(image, expression="the red bag", **more):
    return Row(image=image, image_id=7, height=2, width=3, expression=expression, counts=encode_mask(MASK), **more)


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
@settings(max_examples=40, deadline=None)
def test_masks_survive(mask):
    height, width = mask.shape
    kept = Row("x.png", 1, height, width, "", encode_mask(mask)).mask()
    assert kept.dtype == bool and (kept == mask).all()


def test_rows_survive(tmp_path):
    rows = [
        row(tmp_path / "images" / "ä.png", "la jupe “rayée”", segment_ids=(3, 5), label="skirt", siblings=2),
        row(tmp_path.parent / "elsewhere.png", kind="colour", split="val"),
    ]
    assert write_table(tmp_path / "new" / "rows.jsonl", rows) == 2
    assert read_table(tmp_path / "new" / "rows.jsonl") == rows


def test_a_table_moves_with_its_photographs(tmp_path):
    write_table(tmp_path / "here" / "rows.jsonl", [row(tmp_path / "here" / "images" / "a.png")])
    (tmp_path / "here").rename(tmp_path / "there")
    (read,) = read_table(tmp_path / "there" / "rows.jsonl")
    assert read.image == tmp_path / "there" / "images" / "a.png"


def test_an_interrupted_table_leaves_the_old_one(tmp_path):
    table = tmp_path / "rows.jsonl"
    write_table(table, [row(tmp_path / "a.png")])

    def interrupted():
        yield row(tmp_path / "b.png")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_table(table, interrupted())
    assert [r.image.name for r in read_table(table)] == ["a.png"]


@pytest.mark.parametrize("fault", ["{", "[]", "7", '{"image": "a.png"}', '{"expression": "x"}', '{"image": 3}'])
def test_a_damaged_line_is_named(tmp_path, fault):
    table = tmp_path / "rows.jsonl"
    write_table(table, [row(tmp_path / "a.png")])
    with table.open("a") as file:
        file.write(f"\n{fault}\n")
    with pytest.raises(RefsegError, match=r"rows\.jsonl, line 3, .* write the table again"):
        read_table(table)


def test_an_unknown_field_is_a_damaged_line(tmp_path):
    record = {**dataclasses.asdict(row("a.png")), "colour": "red"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(record))
    with pytest.raises(RefsegError, match="line 1"):
        read_table(tmp_path / "rows.jsonl")


def test_an_empty_table(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(RefsegError, match="holds no expressions; write it with"):
        read_table(tmp_path / "rows.jsonl")


def test_each_photograph_comes_once_with_all_its_rows(tmp_path):
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    rows = [row(b, "1"), row(a, "2"), row(b, "3"), row(a, "4")]
    assert [[r.expression for r in group] for group in by_photograph(rows)] == [["2", "4"], ["1", "3"]]
    assert list(by_photograph([])) == []
