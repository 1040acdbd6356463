"""Template expressions are true and unambiguous: judged here by a reader of its own, from masks and known colours."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.data.expressions.colours import measure
from refseg.data.expressions.generate import generate, mirror_expression, statistics
from refseg.data.table import Row
from refseg.errors import RefsegError

PHOTOS = Path(__file__).parents[3] / "../shared/data"
PALETTE = {
    "black": (10, 10, 10), "white": (250, 250, 250), "red": (210, 20, 25), "green": (30, 160, 40),
    "blue": (30, 60, 200), "yellow": (240, 220, 30), "orange": (250, 140, 20), "purple": (130, 50, 170),
}  # fmt: skip
SIDE = 96

Box = tuple[int, int, int, int]
Mask = npt.NDArray[np.bool_]


# ---------------------------------------------------------------- rendered toy photographs


def rectangle(box: Box, side: int = SIDE) -> Mask:
    mask = np.zeros((side, side), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def segmentation(box: Box, form: str) -> Any:
    x0, y0, x1, y1 = box
    if form == "polygon":
        return [[x0, y0, x1, y0, x1, y1, x0, y1]]
    if form == "runs":
        flat = rectangle(box).ravel(order="F").astype(int)
        borders = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
        return {"size": [SIDE, SIDE], "counts": [int(borders[0]), *(int(b - a) for a, b in pairwise(borders))]}
    packed = coco_mask.encode(np.asfortranarray(rectangle(box), dtype=np.uint8))
    return {"size": [SIDE, SIDE], "counts": packed["counts"].decode()}


def draw(
    folder: Path, photos: Sequence[Sequence[tuple[str, str, Box]]], form: str = "rle", flipped: bool = False
) -> Path:
    """Writes photographs of coloured rectangles (label, colour, box) on grey, and their instance file."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    labels = sorted({label for photo in photos for label, _, _ in photo})
    images, annotations = [], []
    for number, photo in enumerate(photos):
        pixels = np.full((SIDE, SIDE, 3), 128, dtype=np.uint8)
        for label, colour, box in photo:
            if flipped:
                box = (SIDE - box[2], box[1], SIDE - box[0], box[3])
            pixels[rectangle(box)] = PALETTE[colour]
            annotations.append(
                {
                    "id": len(annotations), "image_id": number, "category_id": labels.index(label),
                    "segmentation": segmentation(box, form), "iscrowd": 0,
                }
            )  # fmt: skip
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE})
    categories = [{"id": index, "name": label} for index, label in enumerate(labels)]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def change(path: Path, edit: Any) -> Path:
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    return path


def random_photos(count: int, seed: int = 5) -> list[list[tuple[str, str, Box]]]:
    """Rectangles that do not overlap, of three labels that no word list knows, so that a noun is its label."""
    draw = np.random.default_rng(seed)
    photos = []
    for _ in range(count):
        photo: list[tuple[str, str, Box]] = []
        taken = np.zeros((SIDE, SIDE), dtype=bool)
        while len(photo) < int(draw.integers(2, 8)):
            x, y = (int(v) for v in draw.integers(0, SIDE - 12, 2))
            w, h = (int(v) for v in draw.integers(9, 30, 2))
            box = (x, y, min(x + w, SIDE), min(y + h, SIDE))
            if not (taken & rectangle(box)).any():
                taken |= rectangle(box)
                label = str(draw.choice(["blob", "widget", "gizmo"], p=[0.6, 0.25, 0.15]))
                photo.append((label, str(draw.choice(list(PALETTE))), box))
        photos.append(photo)
    return photos


# ---------------------------------------------------------------- an independent reader of expressions


@dataclass(frozen=True)
class Thing:
    id: int
    label: str
    colour: str
    x: float
    y: float
    area: float
    box: tuple[float, float, float, float]

    @classmethod
    def of(cls, identity: int, label: str, colour: str, mask: Mask) -> Thing:
        rows, columns = np.nonzero(mask)
        height, width = mask.shape
        box = (columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height)
        return cls(
            identity, label, colour, (columns.mean() + 0.5) / width, (rows.mean() + 0.5) / height, mask.mean(), box
        )


COORDINATE = {
    "left": lambda t: t.x, "right": lambda t: -t.x, "top": lambda t: t.y, "bottom": lambda t: -t.y,
}  # fmt: skip
WORD_OF_SIDE = {
    "left": r"left(most)?", "right": r"right(most)?", "top": r"top(most)?|upper(most)?|highest",
    "bottom": r"bottom(most)?|lower|lowest",
}  # fmt: skip
NUMBER = {"first": 1, "1st": 1, "second": 2, "2nd": 2, "third": 3, "3rd": 3, "fourth": 4, "4th": 4}
NUMBER |= {"fifth": 5, "5th": 5, "sixth": 6, "6th": 6}
SYNONYM = {"dark": "black", "violet": "purple"}
RELATION = re.compile(
    r"(?:(?:to|on) )?(?:the )?(?P<side>left|right) (?:side )?of|(?P<top>above|over|higher than)|"
    r"(?P<bottom>below|under|beneath|underneath|lower than)|"
    r"(?P<near>next to|beside|\bby\b|\bnear\b|close to|alongside)|"
    r"(?P<closest>closest to|nearest to|nearest|closer to)|(?P<farthest>(?:farthest|furthest)(?: away)? from)|"
    r"(?P<between>(?:in )?between)"
)


def sides(text: str) -> list[str]:
    return [side for side, words in WORD_OF_SIDE.items() if re.search(rf"\b({words})\b", text)]


def half(side: str, things: list[Thing], reach: float = 0.5) -> list[Thing]:
    """The things whose centres lie within that reach of the photograph's side."""
    return [t for t in things if COORDINATE[side](t) < (reach if side in ("left", "top") else reach - 1)]


def distance(one: Thing, two: Thing) -> float:
    across = max(0.0, one.box[0] - two.box[2], two.box[0] - one.box[2])
    return float(np.hypot(across, max(0.0, one.box[1] - two.box[3], two.box[1] - one.box[3])))


def meant(text: str, things: list[Thing]) -> list[Thing]:
    """What an expression means when read without any margin."""
    text = re.sub(r"^(find the|show me the|the|that|those|a) ", "", text)
    if found := re.search(r"^(?:all|every) (\w+?)s? .*(?:except|but|besides) .*(left|right)", text):
        pool = [t for t in things if t.label == found[1]]
        return [t for t in pool if t is not min(pool, key=COORDINATE[found[2]])]
    edge = re.search(r"closest to the (left edge|right edge|top|bottom)", text)
    moved = re.match(r"closest (\w+) to (.*)", text)
    if moved and not edge:
        text = f"{moved[1]} closest to {moved[2]}"
    relation = None if edge else RELATION.search(text)
    if relation and relation.start() > 0:
        return related(
            meant(text[: relation.start()].strip(), things), relation, text[relation.end() :].strip(), things
        )
    label = next((t.label for t in things if re.search(rf"\b{t.label}s?\b", text)), None)
    pool = [t for t in things if label in (None, t.label)]
    if label is None and not re.search(r"\b(thing|object|item|one)\b", text) and re.search(r"\bfrom\b.*", text):
        pool = [t for t in things if t.label == Counter(t.label for t in things).most_common(1)[0][0]]
    colour = next((c for c in PALETTE if re.search(rf"\b{c}\b", text)), None)
    colour = colour or next((c for word, c in SYNONYM.items() if re.search(rf"\b{word}\b", text)), None)
    denied = re.search(r"\b(not|non|isn't)\b", text)
    if colour and not denied:
        pool = [t for t in pool if t.colour == colour]
    plural = label is not None and re.search(rf"\b({label}s|every|each|pair)\b", text) is not None
    affirmed = compared(text, pool, plural) if not (denied and colour) else [t for t in pool if t.colour == colour]
    return [t for t in pool if t not in affirmed] if denied else affirmed


def compared(text: str, pool: list[Thing], plural: bool) -> list[Thing]:
    place = next((NUMBER[word] for word in text.split() if word in NUMBER), None)
    where = sides(text)
    if place and "from" in text:
        return [sorted(pool, key=COORDINATE[where[0]])[place - 1]]
    if len(where) == 2:
        reach = 0.28 if "corner" in text else 0.5
        return half(where[0], half(where[1], pool, reach), reach)
    if where and (plural or re.search(r"\b(?:not|isn't) (?:on|at)\b", text)):
        return half(where[0], pool)
    if where:
        return [min(pool, key=COORDINATE[where[0]])]
    if re.search(r"\b(middle|center|central)\b", text):
        off = (lambda t: max(abs(t.x - 0.5), abs(t.y - 0.5))) if re.search("center|very|picture", text) else None
        central = [t for t in pool if abs(t.x - 0.5) < 0.15]
        if plural or "not" in text or "isn't" in text:
            return central
        if len(pool) == 3:
            return [sorted(pool, key=COORDINATE["left"])[1]]
        return [min(central or pool, key=off)] if off and len(central) > 1 else central
    for words, size in (
        (r"biggest|largest|big|large|bigger", lambda t: -t.area),
        (r"smallest|small|little|smaller|tiny|tiniest|littlest", lambda t: t.area),
    ):
        if re.search(rf"\b({words})\b", text):
            return [min(pool, key=size)]
    return pool


def related(pool: list[Thing], relation: re.Match[str], rest: str, things: list[Thing]) -> list[Thing]:
    if relation["between"]:
        one, two = (meant(part, things) for part in rest.split(" and "))
        assert len(one) == len(two) == 1
        low, high = sorted((one[0].x, two[0].x))
        return [t for t in pool if low < t.x < high]
    anchors = meant(rest, things)
    assert len(anchors) == 1, f"'{rest}' does not single out one thing"
    anchor = anchors[0]
    if relation["closest"]:
        return [min(pool, key=lambda t: distance(t, anchor))]
    if relation["farthest"]:
        return [max(pool, key=lambda t: distance(t, anchor))]
    if relation["near"]:
        return [t for t in pool if distance(t, anchor) < 0.1]
    side = relation["side"] or ("top" if relation["top"] else "bottom")
    return [t for t in pool if COORDINATE[side](t) < COORDINATE[side](anchor)]


def things_of(photo: Sequence[tuple[str, str, Box]], first: int) -> list[Thing]:
    return [Thing.of(first + i, label, colour, rectangle(box)) for i, (label, colour, box) in enumerate(photo)]


def check(rows: list[Row], photos: Sequence[Sequence[tuple[str, str, Box]]], mirrored: bool = False) -> None:
    starts = np.cumsum([0, *map(len, photos)])
    for row in rows:
        number = int(row.image_id)
        expression = mirror_expression(row.expression) if mirrored else row.expression
        found = meant(expression, things_of(photos[number], int(starts[number])))
        assert {t.id for t in found} == set(row.segment_ids), f"{row.kind}: {expression} in {photos[number]}"


# ---------------------------------------------------------------- truth


@pytest.fixture(scope="module")
def photos() -> list[list[tuple[str, str, Box]]]:
    return random_photos(60)


@pytest.fixture(scope="module")
def rows(photos: list[list[tuple[str, str, Box]]], tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return list(generate(draw(tmp_path_factory.mktemp("toy"), photos), per_photo=60))


def test_every_sentence_singles_out_its_referent(rows: list[Row], photos: Any) -> None:
    check(rows, photos)
    kinds = Counter(row.kind for row in rows)
    wanted = {"category", "colour", "position", "size", "ordinal", "relation", "several", "negation"}
    assert all(kinds[kind] > 40 for kind in wanted), kinds


def test_masks_are_the_union_of_the_named_segments(rows: list[Row], photos: Any) -> None:
    boxes = [box for photo in photos for _, _, box in photo]
    for row in rows:
        union = np.logical_or.reduce([rectangle(boxes[identity]) for identity in row.segment_ids])
        assert np.array_equal(row.mask(), union)


def test_siblings_count_the_other_segments_of_the_label(rows: list[Row], photos: Any) -> None:
    for row in rows:
        same = sum(label == row.label for label, _, _ in photos[int(row.image_id)])
        assert row.siblings == (same - len(row.segment_ids) if row.label else 0)


def test_an_expression_means_one_mask_and_appears_once(rows: list[Row]) -> None:
    seen = Counter((row.image_id, row.expression) for row in rows)
    assert max(seen.values()) == 1


def test_mirrored_sentences_are_true_of_the_mirrored_photograph(rows: list[Row], photos: Any, tmp_path: Path) -> None:
    turned = [[(a, b, (SIDE - x1, y0, SIDE - x0, y1)) for a, b, (x0, y0, x1, y1) in photo] for photo in photos]
    check(rows, turned, mirrored=True)
    check(list(generate(draw(tmp_path, photos, flipped=True))), turned)


def test_mirroring_twice_changes_nothing(rows: list[Row]) -> None:
    for row in rows:
        assert mirror_expression(mirror_expression(row.expression)) == row.expression
        sided = re.search(r"\b(left|right)", row.expression) is not None
        assert (mirror_expression(row.expression) != row.expression) == sided


def test_mirror_touches_sides_alone() -> None:
    assert mirror_expression("second bright cup from the right") == "second bright cup from the left"
    assert (
        mirror_expression("leftmost upright bag left of the right one") == "rightmost upright bag right of the left one"
    )


# ---------------------------------------------------------------- seeded, whatever the order and the encoding


def plain(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(row.image_id, row.expression, row.counts, row.kind) for row in rows]


def test_the_same_seed_gives_the_same_rows_in_any_order(tmp_path: Path) -> None:
    path = draw(tmp_path, random_photos(4))
    first = plain(list(generate(path, seed=3)))
    assert first == plain(list(generate(path, seed=3)))
    assert first != plain(list(generate(path, seed=4)))
    change(path, lambda document: document["images"].reverse())
    assert sorted(first) == sorted(plain(list(generate(path, seed=3))))


@pytest.mark.parametrize("form", ["runs", "polygon"])
def test_run_lengths_and_polygons_read_alike(tmp_path: Path, form: str) -> None:
    toys = random_photos(3)
    packed = plain(list(generate(draw(tmp_path / "a", toys))))
    assert packed == plain(list(generate(draw(tmp_path / "b", toys, form=form))))


def test_photographs_may_lie_elsewhere(tmp_path: Path) -> None:
    path = draw(tmp_path, random_photos(1))
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    rows = list(generate(path, tmp_path / "elsewhere", per_photo=7, split="val"))
    assert len(rows) == 7 and {row.split for row in rows} == {"val"}
    assert rows[0].image == tmp_path / "elsewhere" / "0.png"


# ---------------------------------------------------------------- hand-computed cases


def said(path: Path) -> dict[str, tuple[int, ...]]:
    """Everything that ten seeds say, without what stands before it."""
    rows = [row for seed in range(10) for row in generate(path, per_photo=1000, seed=seed)]
    return {
        re.sub(r"^(find the|show me the|the|that|those|a|her) ", "", row.expression): row.segment_ids for row in rows
    }


def test_a_word_that_could_mean_two_segments_needs_more(tmp_path: Path) -> None:
    alone = said(draw(tmp_path / "a", [[("bag", "red", (5, 40, 25, 60)), ("hat", "blue", (40, 5, 60, 20))]]))
    assert "bag" in alone
    both = said(draw(tmp_path / "b", [[("bag", "red", (5, 40, 25, 60)), ("purse", "blue", (70, 40, 90, 60))]]))
    assert not {"bag", "purse", "handbag"} & both.keys()
    assert any(re.search(r"red (bag|tote|handbag)", text) for text in both)


def test_paired_words_follow_the_number_of_segments(tmp_path: Path) -> None:
    one = said(draw(tmp_path / "a", [[("shoes", "red", (30, 70, 60, 90))]]))
    assert "shoes" in one and not any(re.search(r"\bshoe\b", text) for text in one)
    two = said(draw(tmp_path / "b", [[("shoes", "red", (30, 70, 42, 90)), ("shoes", "red", (50, 70, 62, 90))]]))
    assert two["left shoe"] == (0,) and two["right shoe"] == (1,) and two["both shoes"] == (0, 1)
    assert "shoe" not in two


def test_a_nearer_person_stands_lower_and_larger(tmp_path: Path) -> None:
    people = [("person", "red", (10, 20, 40, 92)), ("person", "blue", (60, 20, 70, 50))]
    rows = [row for row in generate(draw(tmp_path, [people]), per_photo=1000) if row.kind == "closest"]
    near = [row.segment_ids for row in rows if re.search("closest|front|nearest|foreground", row.expression)]
    far = [row.segment_ids for row in rows if re.search("back|farthest|furthest|distance", row.expression)]
    assert len(near) + len(far) >= 0.9 * len(rows)
    assert set(near) == {(0,)} and set(far) == {(1,)}


def test_what_rests_on_something_is_told_by_it(tmp_path: Path) -> None:
    photo = [("bed", "blue", (0, 60, 50, 90)), ("cat", "black", (15, 40, 35, 60)), ("cat", "white", (65, 40, 85, 60))]
    found = {
        text: ids for text, ids in said(draw(tmp_path, [photo])).items() if re.search(r" on (the |top of )?.*bed", text)
    }
    assert found and set(found.values()) == {(1,)}


def test_crowds_and_specks_are_no_referents_but_make_names_ambiguous(tmp_path: Path) -> None:
    photo = [("dog", "black", (10, 40, 40, 70)), ("dog", "black", (80, 40, 84, 44))]
    assert all(0 in ids for ids in said(draw(tmp_path / "a", [photo])).values())
    assert not {"dog", "the dog"} & said(tmp_path / "a" / "instances.json").keys()
    photo = [("dog", "black", (10, 40, 30, 60)), ("dog", "black", (50, 40, 90, 70))]

    def crowd(document: dict[str, Any]) -> None:
        document["annotations"][1]["iscrowd"] = 1

    texts = said(change(draw(tmp_path / "b", [photo]), crowd))
    assert (1,) not in texts.values() and "dog" not in texts
    assert texts["dogs"] == (0, 1)
    assert {ids for text, ids in texts.items() if re.search(r"\bleft", text)} == {(0,)}


@pytest.mark.parametrize("name", ["red", "green", "blue", "yellow", "black", "white", "orange", "purple"])
def test_clear_colours_are_named_and_exclude_the_others(name: str) -> None:
    noise = np.random.default_rng(0).integers(-8, 9, (500, 3))
    colours = measure((np.array(PALETTE[name]) + noise).clip(0, 255).astype(np.uint8))
    assert colours.name() == name
    assert {other: colours.truth(other) for other in PALETTE if other != name}[
        {"black": "red"}.get(name, "black")
    ] == -1


@pytest.mark.parametrize("pixel", [(120, 20, 60), (0, 128, 128), (70, 70, 75), (200, 190, 130), (200, 70, 30)])
def test_borderline_colours_have_no_name(pixel: tuple[int, int, int]) -> None:
    assert measure(np.tile(np.array(pixel, dtype=np.uint8), (100, 1))).name() == ""


def test_two_coloured_segments_have_no_colour() -> None:
    pixels = np.repeat(np.array([PALETTE["red"], PALETTE["blue"]], dtype=np.uint8), 50, axis=0)
    colours = measure(pixels)
    assert colours.name() == "" and colours.truth("red") == colours.truth("blue") == 0


# ---------------------------------------------------------------- input that cannot be used


def test_lost_and_broken_photographs_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = draw(tmp_path, random_photos(3))
    (tmp_path / "images" / "0.png").unlink()
    (tmp_path / "images" / "1.png").write_bytes((tmp_path / "images" / "1.png").read_bytes()[:60])
    assert {row.image_id for row in generate(path)} == {2}
    assert "0.png" in caplog.text and "1.png" in caplog.text and "skipped 2 of 3 photographs" in caplog.text


def test_a_segment_of_another_size_is_reported_and_its_names_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photo = [("dog", "black", (10, 40, 40, 70)), ("dog", "red", (60, 40, 90, 70)), ("cup", "red", (40, 5, 60, 30))]

    def shrink(document: dict[str, Any]) -> None:
        document["annotations"][1]["segmentation"] = {"size": [48, 48], "counts": [0, 10, 2294]}

    texts = said(change(draw(tmp_path, [photo]), shrink))
    assert "48×48" in caplog.text and "96×96" in caplog.text
    assert "cup" in texts and set(texts.values()) == {(2,)}
    assert not [text for text in texts if re.search(r"\b(thing|object|item|one)\b", text)], "it could be the lost dog"


@pytest.mark.parametrize("broken", [[], [[1, 2]], {"size": [96, 96]}, {"size": [96, 96], "counts": [5, 5]}, None, 7])
def test_a_broken_segmentation_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: Any) -> None:
    path = draw(tmp_path, [[("dog", "black", (10, 40, 40, 70)), ("cup", "red", (40, 5, 60, 30))]])

    def spoil(document: dict[str, Any]) -> None:
        document["annotations"][0]["segmentation"] = broken

    assert {row.label for row in generate(change(path, spoil))} == {"cup"}
    assert "skipped a segment (dog)" in caplog.text


@pytest.mark.parametrize(
    "text",
    ["", "[1]", '{"images": []}', '{"images": [{}], "annotations": [], "categories": []}',
     '{"images": [], "categories": [], "annotations": [{"image_id": 1, "category_id": 9, "segmentation": []}]}'],
)  # fmt: skip
def test_a_wrong_file_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(RefsegError, match=r"wrong\.json"):
        list(generate(tmp_path / "wrong.json"))


def test_an_absent_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RefsegError, match="absent"):
        list(generate(tmp_path / "absent.json"))


# ---------------------------------------------------------------- statistics


def test_statistics_count_by_hand() -> None:
    def row(expression: str, kind: str, siblings: int, segment: int) -> Row:
        return Row(Path("a.jpg"), 1, 2, 2, expression, "", (segment,), "dog", kind, siblings)

    found = statistics(
        [row("left dog", "position", 1, 1), row("The dog on the left", "position", 1, 1), row("dog", "category", 0, 2)]
    )
    assert (found.expressions, found.photographs, found.referents) == (3, 1, 2)
    assert found.kinds == {"position": 2, "category": 1}
    assert found.with_siblings == pytest.approx(2 / 3)
    assert found.words_per_expression == pytest.approx(8 / 3)
    assert found.vocabulary == 4  # left, dog, the, on
    assert statistics([]).expressions == 0


# ---------------------------------------------------------------- real photographs


@pytest.mark.data
@pytest.mark.parametrize("folder", ["photos-fashion/val", "photos-coco/val"])
def test_real_photographs(folder: str, tmp_path: Path) -> None:
    path = PHOTOS / folder / "instances.json"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    document = json.loads(path.read_text())
    document["images"] = document["images"][:25]
    kept = tmp_path / "instances.json"
    kept.write_text(json.dumps(document))
    rows = list(generate(kept, path.parent / "images"))
    names = {category["id"]: category["name"] for category in document["categories"]}
    things: dict[tuple[Any, str], list[Thing]] = defaultdict(list)
    for annotation in document["annotations"]:
        if annotation["image_id"] <= document["images"][-1]["id"]:
            label, mask = names[annotation["category_id"]], coco_mask.decode(annotation["segmentation"]).astype(bool)
            things[annotation["image_id"], label].append(Thing.of(annotation["id"], label, "", mask))
    judged = 0
    for row in rows:
        others = things[row.image_id, row.label]
        words = set(row.expression.split())
        if (
            row.kind in ("ordinal", "position", "size")
            and len(others) > 1
            and not words & COLOURS
            and not words & HEIGHTS
        ):
            # Whatever its noun may mean beyond its own label, the referent must stand out among its siblings.
            judged += 1
            found = [t.id for t in compared(row.expression, others, plural=False)]
            assert found == list(row.segment_ids), f"{row.image.name}: {row.expression}"
    assert judged > 100
    found = statistics(rows)
    assert found.with_siblings > 0.25 and found.vocabulary > 150 and found.photographs >= 24
    assert len({(row.image_id, row.expression) for row in rows}) == len(rows)


COLOURS = {*PALETTE, *SYNONYM, "gray", "grey", "pink", "brown", "beige", "tan", "cream"}
HEIGHTS = {"tallest", "tall", "taller", "shortest", "short", "shorter", "longest", "long", "longer"}
