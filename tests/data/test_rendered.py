import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.data import rendered
from refseg.data.expressions.colours import measure
from refseg.errors import RefsegError

COUNT = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rendered") / "scenes"
    assert rendered.render(path, COUNT, seed=3) == path / "instances.json"
    return path


@pytest.fixture(scope="module")
def document(folder):
    return json.loads((folder / "instances.json").read_text(encoding="utf-8"))


def pixels_of(folder, image):
    with Image.open(folder / "images" / image["file_name"]) as photo:
        assert photo.mode == "RGB"
        return np.asarray(photo)


def segments_of(document, image):
    """(category, mask, annotation) of one image, in order."""
    categories = {category["id"]: category for category in document["categories"]}
    return [
        (categories[a["category_id"]], coco_mask.decode(a["segmentation"]).astype(bool), a)
        for a in document["annotations"]
        if a["image_id"] == image["id"]
    ]


def things_of(document, image):
    return [mask for category, mask, _ in segments_of(document, image) if category["isthing"]]


def test_layout_is_coco(folder, document):
    assert len(document["images"]) == COUNT == len(list((folder / "images").iterdir()))
    ids = [annotation["id"] for annotation in document["annotations"]]
    assert len(set(ids)) == len(ids)
    assert {category["isthing"] for category in document["categories"]} == {0, 1}
    for image in document["images"]:
        assert pixels_of(folder, image).shape == (image["height"], image["width"], 3)
        assert max(image["height"], image["width"]) == 160
        for _, mask, annotation in segments_of(document, image):
            assert mask.shape == (image["height"], image["width"])
            assert annotation["area"] == mask.sum()
            rows, columns = np.nonzero(mask)
            left, top, width, height = annotation["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)


def test_segments_do_not_overlap_and_cover_the_scene(document):
    for image in document["images"]:
        layers = sum(mask.astype(int) for _, mask, _ in segments_of(document, image))
        assert layers.max() == 1
        assert layers.mean() > 0.9


def test_masks_are_where_the_colour_is(folder, document):
    """Pixels inside a shape's mask have its colour or that of its marking, and just outside another one."""
    named = np.array(list(rendered.COLOURS.values()))
    for image in document["images"]:
        pixels = pixels_of(folder, image).astype(int)
        things = things_of(document, image)
        for mask in things:
            colour = np.median(pixels[mask], axis=0)
            assert np.abs(named - colour).max(axis=1).min() <= 7
            shades = (colour, rendered._shade(colour))
            distance = np.minimum(*(np.abs(pixels - rgb).max(axis=2) for rgb in shades))
            assert (distance[mask] <= 3).mean() > 0.75  # the rest are softened edges
        ground = ~np.any(things, axis=0)
        shapes = np.array([np.median(pixels[mask], axis=0) for mask in things])
        resembles = (np.abs(pixels[ground][:, None] - shapes).max(axis=2) <= 3).any(axis=1)
        assert resembles.mean() < 0.01


@pytest.mark.parametrize("name", rendered.COLOURS)
@pytest.mark.parametrize("jitter", [-6, 0, 6])
def test_colours_are_measured_by_their_names(name, jitter):
    rgb = np.clip(np.array(rendered.COLOURS[name]) + jitter, 0, 255).astype(np.uint8)
    assert measure(rgb[None]).name() == name


def test_shapes_stay_recognisable(document):
    siblings = 0
    for image in document["images"]:
        labels = Counter(c["name"] for c, _, _ in segments_of(document, image) if c["isthing"])
        assert 2 <= labels.total() <= 6
        siblings += max(labels.values()) > 1
        for mask in things_of(document, image):
            assert mask.sum() >= 64
    assert siblings > COUNT / 2


@pytest.mark.parametrize(
    ("label", "area"),
    [
        ("circle", np.pi),
        ("ring", np.pi * (1 - 0.55**2)),
        ("square", 1.6**2),
        ("triangle", 3 * np.sqrt(3) / 4),
        ("cross", 2 * 0.72 * 2 - 0.72**2),
        ("star", 10 * 0.48 * np.sin(np.radians(36)) / 2),
    ],
)
def test_outlines_have_the_area_of_their_geometry(label, area):
    coverage = rendered._coverage(np.random.default_rng(0), label, 30.0)
    assert coverage.sum() == pytest.approx(area * 30**2, rel=0.04)


def test_kinds_differ_in_their_markings():
    rgb = np.array([200.0, 100.0, 50.0])
    marked = {
        label: rendered._marked(np.random.default_rng(0), label, rgb, 40, 160)[..., 0] < 150
        for label in rendered._OUTLINES
    }
    assert all(mask.mean() < 0.5 for mask in marked.values()), "the median is the colour itself"
    plain = {label for label, mask in marked.items() if not mask.any()}
    assert plain == {"circle"}
    patterns = {mask.tobytes() for label, mask in marked.items() if label not in plain}
    assert len(patterns) == len(marked) - len(plain)
    assert (marked["square"] == marked["square"][:, :1]).all() and (marked["triangle"] == marked["triangle"][:1]).all()


def test_a_shape_beyond_the_edge_is_cut_where_it_leaves():
    rng = np.random.default_rng(0)
    coverage = rendered._coverage(rng, "triangle", 12.0)
    side, n = 36, len(coverage)
    cut = 0
    for _ in range(60):
        placed = []
        shape = rendered._Shape("triangle", "red", np.full((n, n, 3), 200.0), coverage)
        rendered._place(rng, shape, placed, np.zeros((side, side, 3)))
        everywhere = np.zeros((side + 2 * n, side + 2 * n), dtype=bool)
        everywhere[:n, :n] = coverage >= 0.5
        shifted = (
            np.roll(everywhere, (down, right), (0, 1))[n:-n, n:-n]
            for down in range(n // 2, n + side)
            for right in range(n // 2, n + side)
        )
        mask = placed[0].visible
        assert any(np.array_equal(mask, expected) for expected in shifted)
        cut += mask.sum() < placed[0].full
    assert cut > 5


def test_stuff_lies_on_the_side_its_layout_says(document):
    """Sky is above whatever it is with."""
    seen = 0
    for image in document["images"]:
        height = {c["name"]: np.nonzero(m)[0].mean() for c, m, _ in segments_of(document, image) if not c["isthing"]}
        assert 1 <= len(height) <= 3
        if "sky" in height and len(height) > 1:
            assert min(height, key=lambda name: height[name]) == "sky"
            seen += 1
    assert seen


def test_every_label_and_colour_occurs(folder, document):
    used = {annotation["category_id"] for annotation in document["annotations"]}
    assert used == {category["id"] for category in document["categories"]}
    colours = set()
    for image in document["images"]:
        pixels = pixels_of(folder, image)
        colours |= {measure(pixels[mask]).name() for mask in things_of(document, image)}
    assert colours >= set(rendered.COLOURS)


def test_a_scene_depends_on_seed_and_index_alone(folder, document, tmp_path):
    rendered.render(tmp_path / "few", 3, seed=3)
    few = json.loads((tmp_path / "few/instances.json").read_text(encoding="utf-8"))
    assert few["images"] == document["images"][:3]
    assert few["annotations"] == [a for a in document["annotations"] if a["image_id"] <= 3]
    for image in few["images"]:
        assert np.array_equal(pixels_of(tmp_path / "few", image), pixels_of(folder, image))
    rendered.render(tmp_path / "other", 1, seed=4)
    other = (tmp_path / "other/images/000000.png").read_bytes()
    assert other != (folder / "images/000000.png").read_bytes()


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(RefsegError, match="name a new folder"):
        rendered.render(tmp_path / "mine", 1)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(rng):
        raise KeyboardInterrupt

    monkeypatch.setattr(rendered, "_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rendered.render(tmp_path / "new", 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-1, 0), (1, -1)])
def test_numbers_out_of_range(tmp_path, count, seed):
    with pytest.raises(RefsegError, match="count from 1 and a seed from 0"):
        rendered.render(tmp_path / "new", count, seed)
