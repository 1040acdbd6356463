"""Sentences that people typed become rows: the right mask, the right siblings, and errors that name the line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg.cli import main
from refseg.data.expressions.typed import typed_rows
from refseg.data.table import read_table
from refseg.errors import RefsegError

HERE = Path(__file__).parents[3]
SIDE = 32
# Photograph, label, box (xyxy); the identities are 1, 2, 3, 4.
SEGMENTS = [
    (7, "cup", (0, 0, 8, 8)),
    (7, "cup", (16, 0, 24, 8)),
    (7, "table", (0, 16, 32, 32)),
    (8, "cup", (4, 4, 9, 9)),
]


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    """Two grey photographs, 7 with two cups and a table, 8 with one cup."""
    (tmp_path / "images").mkdir()
    for photo in (7, 8):
        Image.new("RGB", (SIDE, SIDE), "grey").save(tmp_path / f"images/{photo}.png")
    document = {
        "images": [{"id": photo, "file_name": f"{photo}.png"} for photo in (7, 8)],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "table"}],
        "annotations": [
            {"id": number, "image_id": photo, "category_id": 1 if label == "cup" else 2,
             "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
            for number, (photo, label, (x0, y0, x1, y1)) in enumerate(SEGMENTS, start=1)
        ],
    }  # fmt: skip
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document))
    return path


def write(instances: Path, *lines: str) -> Path:
    path = instances.with_name("typed.jsonl")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def say(image_id: Any, annotations: Sequence[int], expression: str) -> str:
    return json.dumps({"image_id": image_id, "annotations": annotations, "expression": expression}, ensure_ascii=False)


def union(*numbers: int) -> np.ndarray[Any, Any]:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    for number in numbers:
        x0, y0, x1, y1 = SEGMENTS[number - 1][2]
        mask[y0:y1, x0:x1] = True
    return mask


def test_a_sentence_means_its_segments_together(instances: Path) -> None:
    lines = [
        say(8, [4], "the cup "),
        "",
        say(7, [2], "right cup"),
        say(7, [1, 2], "both"),
        say(7, [1, 3], "l’une & co"),
    ]
    rows = {row.expression: row for row in typed_rows(instances, write(instances, *lines), split="val")}
    expected = {"the cup": (4,), "right cup": (2,), "both": (1, 2), "l’une & co": (1, 3)}
    assert {expression: row.segment_ids for expression, row in rows.items()} == expected
    for expression, numbers in expected.items():
        np.testing.assert_array_equal(rows[expression].mask(), union(*numbers))
    assert {row.expression: row.siblings for row in rows.values()} == {
        "the cup": 0, "right cup": 1, "both": 0, "l’une & co": 0
    }  # fmt: skip
    assert [rows[expression].label for expression in expected] == ["cup", "cup", "cup", ""]
    assert {(row.kind, row.split) for row in rows.values()} == {("typed", "val")}
    assert rows["the cup"].image == instances.parent / "images/8.png"


def test_a_sentence_without_annotations_means_nothing(instances: Path) -> None:
    lines = write(instances, say(7, [2], "right cup"), say(7, [], "the elephant"), say(8, [], "two cups"))
    rows = {row.expression: row for row in typed_rows(instances, lines, split="val")}
    for expression, photo in {"the elephant": 7, "two cups": 8}.items():
        row = rows[expression]
        assert row.mask().shape == (SIDE, SIDE) and not row.mask().any()
        assert (row.image_id, row.kind, row.segment_ids, row.label, row.siblings) == (photo, "nothing", (), "", 0)
    assert rows["right cup"].kind == "typed" and rows["right cup"].mask().any()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (say(9, [1], "cup"), ["id 9", "images"]),
        (say("7", [1], "cup"), ["id '7'"]),
        (say(7, [1, 4], "cups"), ["no segment 4", "1, 2, 3"]),
        (say(7, [1], "  "), ["'expression' is empty"]),
        (say([7], [1], "cup"), ["image_id is neither"]),
        ('{"image_id": 7, "expression": "cup"}', ["'annotations'", "write for example"]),
        ("[1]", ["no sentence"]),
        ("left cup", ["no sentence"]),
    ],
)
def test_a_wrong_line_is_named_with_its_cure(instances: Path, line: str, words: list[str]) -> None:
    path = write(instances, say(7, [3], "table"), line)
    with pytest.raises(RefsegError) as fault:
        list(typed_rows(instances, path))
    for part in [f"{path}, line 2", *words]:
        assert part in str(fault.value)


def test_a_sentence_about_an_unreadable_photograph_is_not_lost(instances: Path) -> None:
    (instances.parent / "images/8.png").write_bytes(b"no picture")
    with pytest.raises(RefsegError, match=r"line 2: .* id 8 that can be read"):
        list(typed_rows(instances, write(instances, say(7, [3], "table"), say(8, [4], "cup"))))


def test_photographs_without_sentences_are_not_opened(instances: Path, caplog: pytest.LogCaptureFixture) -> None:
    (instances.parent / "images/8.png").unlink()
    assert len(list(typed_rows(instances, write(instances, say(7, [3], "table"))))) == 1
    assert not caplog.records


def test_the_command_writes_a_table(instances: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(instances, say(7, [2], "right cup"), say(7, [3], "table")), instances.with_name("table.jsonl")
    assert main(["data", "expressions", str(instances), "--sentences", str(path), "--out", str(out)]) == 0
    assert [row.expression for row in read_table(out)] == ["right cup", "table"]
    assert "2 expressions of 2 referents in 1 photos" in capsys.readouterr().out


# ---------------------------------------------------------------- the files of sentences/

FILES = {
    path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for path in sorted((HERE / "sentences").glob("*.jsonl"))
}
TRAINING = {"photos-coco-things-train", "photos-coco-train"}


def test_the_readme_counts_the_sentences_and_says_which_are_for_evaluation() -> None:
    text = (HERE / "sentences/README.md").read_text(encoding="utf-8")
    assert f"{sum(map(len, FILES.values())):,} referring expressions" in text
    for name, lines in FILES.items():
        nothing = sum(not line["annotations"] for line in lines)
        photos = len({line["image_id"] for line in lines})
        use = "training" if name in TRAINING else "**evaluation only**"
        assert f"| `{name}.jsonl` | {len(lines):,} | {nothing} | {photos} | {use} |" in text


def test_no_photograph_to_learn_from_is_one_to_judge_by() -> None:
    coco = {name: {line["image_id"] for line in lines} for name, lines in FILES.items() if "coco" in name}
    trained = set().union(*(photos for name, photos in coco.items() if name in TRAINING))
    judged = set().union(*(photos for name, photos in coco.items() if name not in TRAINING))
    assert trained and judged and trained.isdisjoint(judged)


def test_the_typed_sentences_are_short_and_each_is_said_once() -> None:
    lines = [(name, line) for name, lines in FILES.items() for line in lines]
    texts = Counter((name, line["image_id"], line["expression"]) for name, line in lines)
    one_sentence_each = [(name, line) for name, line in lines if name in ("photos-coco-val", "photos-fashion-val")]
    meant = Counter((name, line["image_id"], tuple(sorted(line["annotations"]))) for name, line in one_sentence_each)
    assert len(lines) >= 7000 and len(one_sentence_each) >= 200
    assert max(texts.values()) == 1 and max(meant.values()) == 1
    assert all(1 <= len(line["expression"].split()) <= 25 for _, line in lines)


@pytest.mark.data
@pytest.mark.parametrize(("name", "with_siblings"), [("photos-fashion", 0.25), ("photos-coco", 0.6)])
def test_the_typed_sentences_mean_segments_of_a_fair_size(name: str, with_siblings: float) -> None:
    instances = HERE / f"../shared/data/{name}/val/instances.json"
    if not instances.exists():
        pytest.skip(f"{instances} is absent")
    document = json.loads(instances.read_text(encoding="utf-8"))
    pixels = {image["id"]: image["width"] * image["height"] for image in document["images"]}
    segments = {annotation["id"]: annotation for annotation in document["annotations"]}
    labels = Counter((segment["image_id"], segment["category_id"]) for segment in document["annotations"])
    photos, siblings = set(), []
    for line in (HERE / f"sentences/{name}-val.jsonl").read_text(encoding="utf-8").splitlines():
        sentence = json.loads(line)
        meant = [segments[identity] for identity in sentence["annotations"]]
        assert {segment["image_id"] for segment in meant} == {sentence["image_id"]}, line
        assert sum(segment["area"] for segment in meant) >= 0.005 * pixels[sentence["image_id"]], line
        kinds = {(segment["image_id"], segment["category_id"]) for segment in meant}
        siblings.append(len(kinds) == 1 and labels[kinds.pop()] > len(meant))
        photos.add(sentence["image_id"])
    assert np.mean(siblings) >= with_siblings
    assert photos == set(pixels)
