import dataclasses
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_config

from refseg.data.table import Row
from refseg.masks import encode_mask
from refseg.training.batches import (
    Collate,
    PhotoDataset,
    PhotoSampler,
    crop_proof,
    draw,
    mix,
    phase_at,
    random_crop,
    scaled_grid,
)
from refseg.training.recipe import DataRecipe, Phase, TrainingRecipe
from refseg.words import WordTokenizer

PHASES = st.lists(st.builds(Phase, st.integers(1, 4), st.integers(1, 5), st.just(1)), min_size=1, max_size=3)
RUNS = {"phases": PHASES, "photos": st.integers(1, 9), "seed": st.integers(0, 3)}


def plan(phases, seed=0, **values):
    return TrainingRecipe("", phases, seed=seed, **values)


def steps(sampler):
    return [[photo for photo, _, _ in batch] for batch in sampler]


@given(**RUNS, world=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_every_photograph_once_a_round(phases, photos, seed, world):
    ranks = [steps(PhotoSampler([1] * photos, plan(phases, seed), range(12), rank, world)) for rank in range(world)]
    shown = [photo for step in zip(*ranks, strict=True) for share in step for photo in share]
    for start in range(0, len(shown) - photos + 1, photos):
        assert sorted(shown[start : start + photos]) == list(range(photos))


@given(**RUNS, world=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_processes_share_out_the_step_of_one(phases, photos, seed, world):
    ranks = [list(PhotoSampler([1] * photos, plan(phases, seed), range(9), rank, world)) for rank in range(world)]
    together = [dataclasses.replace(phase, photos=phase.photos * world) for phase in phases]
    shared = [[key for share in step for key in share] for step in zip(*ranks, strict=True)]
    assert shared == list(PhotoSampler([1] * photos, plan(together, seed), range(9)))


@given(**RUNS, done=st.integers(0, 11), rank=st.integers(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_resumed_run_sees_what_the_undisturbed_one_would(phases, photos, seed, done, rank):
    straight = list(PhotoSampler([1] * photos, plan(phases, seed), range(12), rank, 2))
    resumed = PhotoSampler([1] * photos, plan(phases, seed), range(done, 12), rank, 2)
    assert list(resumed) == straight[done:]
    assert len(resumed) == 12 - done


@given(**RUNS, world=st.integers(1, 2), accumulate=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_batches_that_make_one_step_share_out_what_one_large_batch_would_hold(phases, photos, seed, world, accumulate):
    training = plan(phases, seed, accumulate=accumulate)
    ranks = [list(PhotoSampler([1] * photos, training, range(3, 9), rank, world)) for rank in range(world)]
    assert all(
        len(batches) == len(PhotoSampler([1] * photos, training, range(3, 9))) == 6 * accumulate for batches in ranks
    )
    in_turn = [batch for batches in zip(*ranks, strict=True) for batch in batches]
    parts = accumulate * world
    shared = [[key for batch in in_turn[n : n + parts] for key in batch] for n in range(0, len(in_turn), parts)]
    together = [dataclasses.replace(phase, photos=phase.photos * parts) for phase in phases]
    assert shared == list(PhotoSampler([1] * photos, plan(together, seed), range(3, 9)))


def test_rounds_and_seeds_differ():
    first, second = np.reshape(steps(PhotoSampler([1] * 50, plan([Phase(1, 50, 1)]), range(2))), (2, 50))
    (other,) = steps(PhotoSampler([1] * 50, plan([Phase(1, 50, 1)], seed=1), range(1)))
    assert list(first) != list(second) and list(first) != other


@given(counts=st.lists(st.integers(1, 7), min_size=1, max_size=6), size=st.integers(1, 3), per_step=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_drawn_over_expressions_each_is_asked_once_a_round(counts, size, per_step):
    photos = [
        [Row(Path(f"{p}.png"), p, 1, 1, f"{p} {n}", "", kind="category") for n in range(count)]
        for p, count in enumerate(counts)
    ]
    training = plan([Phase(99, per_step, size)])
    data = PhotoDataset(photos, DataRecipe([], draw="expressions"), training, tiny_config())
    visits = sum(data.parts)
    rounds = 2
    keys = [
        key for batch in PhotoSampler(data.parts, training, range(-(-rounds * visits // per_step))) for key in batch
    ]
    for round_ in range(rounds):
        shown = [visit for visit, _, _ in keys[round_ * visits : (round_ + 1) * visits]]
        asked = [row.expression for visit in shown for row in data._part(visit % len(photos), visit // len(photos))]
        assert sorted(asked) == sorted(row.expression for rows in photos for row in rows)
    assert all(len(data._part(p, 0)) == min(size, count) for p, count in enumerate(counts))


def test_a_visit_asks_its_part_and_keeps_the_rivals_of_the_whole(dataset):
    rows = [(str(n), "category", mask_of(n, n, n + 20, n + 20)) for n in range(5)]
    data = dataset(rows, [Phase(9, 1, 2)], draw="expressions")
    assert data.parts == [3]
    asked = [data[visit, step, 0].expressions for step, visit in enumerate(range(3))]
    assert sorted(map(len, asked)) == [1, 2, 2] and sorted(chain(*asked)) == ["0", "1", "2", "3", "4"]
    assert sorted(data[0, 7, 0].expressions) == sorted(asked[0])


def test_phases_follow_one_another_and_the_last_goes_on():
    phases = [Phase(2, 1, 1), Phase(1, 2, 1), Phase(1, 3, 1)]
    assert [phase_at(phases, step).photos for step in range(6)] == [1, 1, 2, 3, 3, 3]


# From here on the photograph is white where the referent is and black elsewhere.

HEIGHT, WIDTH = 48, 64
PLAIN = {"mirror": 0.0, "crop": 0.0, "jitter": 0.0}


def mask_of(top, left, bottom, right):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


REFERENT = mask_of(6, 4, 40, 30)
PHASE = [Phase(9, 1, 4)]


@pytest.fixture
def dataset(tmp_path):
    Image.fromarray(np.repeat(REFERENT[..., None] * np.uint8(255), 3, axis=2)).save(tmp_path / "photo.png")

    def make(rows, phases=PHASE, grid=4, target="cells", letterbox=False, **data):
        table = [
            Row(tmp_path / "photo.png", 1, HEIGHT, WIDTH, text, encode_mask(mask), kind=kind)
            for text, kind, mask in rows
        ]
        return photo_dataset([table], phases, grid, target=target, letterbox=letterbox, **data)

    return make


def photo_dataset(photos, phases=PHASE, grid=4, seed=0, target="cells", letterbox=False, **data):
    recipe = DataRecipe(train=[], **{**PLAIN, **data})
    config = tiny_config(image_size=64, grid=grid, letterbox=letterbox)
    return PhotoDataset(photos, recipe, plan(phases, seed, target=target), config)


BAG = ("the bag on the left", "category", REFERENT)


def test_a_target_is_the_share_of_each_cell(dataset):
    """At grid 2 the target has 8×8 cells of 6×8 pixels; 12 of the corner's 48 and the whole of another are covered."""
    mask = mask_of(0, 0, 3, 4) | mask_of(6, 8, 12, 16)
    (target,) = dataset([("x", "", mask)], grid=2)[0, 0, 0].targets
    expected = torch.zeros(1, 8, 8)
    expected[0, 0, 0], expected[0, 1, 1] = 0.25, 1.0
    torch.testing.assert_close(target, expected, rtol=0, atol=1 / 255)


@pytest.mark.parametrize(
    "recipe", [{}, {"mirror": 0.5}, {"crop": 1.0}, {"crop": 1.0, "mirror": 1.0}, {"letterbox": True}]
)
def test_target_and_photograph_stay_together(dataset, recipe):
    data = dataset([BAG], **recipe)
    for step in range(8):
        sample = data[0, step, 0]
        assert sample.image.shape == (3, 64, 64) and sample.targets.shape == (1, 1, 16, 16)
        seen = F.adaptive_avg_pool2d(sample.image.mean(dim=0, keepdim=True), 16)
        assert (seen - sample.targets[0]).abs().mean() < 0.03


def test_a_mirrored_photograph_has_mirrored_sentences(dataset):
    plain, mirrored = (dataset([BAG], mirror=share)[0, 0, 0] for share in (0.0, 1.0))
    assert plain.expressions == ["the bag on the left"]
    assert mirrored.expressions == ["the bag on the right"]
    torch.testing.assert_close(mirrored.targets, plain.targets.flip(-1), rtol=0, atol=1 / 255)
    torch.testing.assert_close(mirrored.image, plain.image.flip(-1), rtol=0, atol=2 / 255)
    assert not torch.equal(mirrored.image, plain.image)


def test_a_sample_depends_on_its_key_alone(dataset):
    rows = [(f"the bag {n}", "category", mask_of(n, n, n + 20, n + 20)) for n in range(9)]
    lively = {"mirror": 0.5, "crop": 0.5, "jitter": 0.3}
    one, other = dataset(rows, **lively), dataset(rows, **lively)
    other[0, 5, 0], other[0, 7, 1]
    keys = [(0, 1, 0), (0, 1, 1), (0, 2, 0)]
    for key in keys:
        a, b = one[key], other[key]
        assert a.expressions == b.expressions
        assert torch.equal(a.image, b.image) and torch.equal(a.targets, b.targets)
    assert len({tuple(one[key].expressions) for key in keys}) == 3


def test_a_crop_keeps_the_sentences_that_no_crop_makes_untrue(dataset):
    kinds = ["category", "colour", "stuff", "position", "size", "ordinal", "relation", "several", ""]
    data = dataset([(kind, kind, REFERENT) for kind in kinds], phases=[Phase(9, 1, 20)], crop=1.0)
    for step in range(6):
        assert sorted(data[0, step, 0].expressions) == ["category", "colour", "stuff"]


def test_without_such_sentences_there_is_no_crop(dataset):
    rows = [("the left bag", "position", REFERENT)]
    assert torch.equal(dataset(rows, crop=1.0)[0, 3, 0].image, dataset(rows)[0, 3, 0].image)


def test_a_referent_outside_the_crop_is_not_asked_for(dataset):
    corner = ("the corner", "category", mask_of(0, 0, 3, 3))
    samples = [dataset([BAG, corner], crop=1.0)[0, step, 0] for step in range(12)]
    assert {len(sample.expressions) for sample in samples} == {1, 2}
    assert all((sample.targets.sum(dim=(1, 2, 3)) > 0).all() for sample in samples)
    assert all(len(s.expressions) == len(s.targets) == s.answered for s in samples)


@pytest.mark.parametrize("target", ["half", "full"])
def test_a_fine_target_is_the_mask_itself(dataset, target):
    """The photograph is 64×48 and the network's side 64, so that `full` has a column for each of the mask's."""
    mask = mask_of(3, 7, 17, 30)
    sample = dataset([("x", "", mask)], [Phase(9, 1, 1, side=64)], target=target)[0, 0, 0]
    assert sample.targets.shape == sample.rivals.shape == (1, 1, *[64 if target == "full" else 32] * 2)
    assert set(sample.targets.unique().tolist()) == {0.0, 1.0}
    columns = sample.targets[0, 0].any(dim=0).nonzero().flatten()
    first, last = (7, 29) if target == "full" else (3, 14)  # half of column 7 is half a pixel, which counts
    assert (columns[0], columns[-1]) == (first, last)
    assert sample.targets.mean() == pytest.approx(mask.mean(), rel=0.05)


def test_a_letterboxed_target_keeps_its_aspect(dataset):
    """The photograph is 64×48: on a square of 64 pixels it has 8 rows of border above and below."""
    mask = mask_of(3, 7, 17, 30)
    sample = dataset([("x", "", mask)], [Phase(9, 1, 1, side=64)], target="full", letterbox=True)[0, 0, 0]
    assert np.array_equal(sample.targets[0, 0, 8:56] > 0, mask)
    border = [0, 7, 56, 63]
    assert not sample.image[:, border].any() and not sample.targets[..., border, :].any()


def test_the_released_codes_target_grows_by_what_bilinear_resizing_touches(dataset):
    """64×48 to 32×32 with the corners aligned: columns 7 to 29 lie between 3.4 and 14.3 of the target's."""
    mask = mask_of(3, 7, 17, 30)
    target = dataset([("x", "", mask)], [Phase(9, 1, 1, side=64)], target="dilated")[0, 0, 0].targets[0, 0]
    assert target.shape == (32, 32) and set(target.unique().tolist()) == {0.0, 1.0}
    columns = target.any(dim=0).nonzero().flatten()
    assert (columns[0], columns[-1]) == (3, 14)
    half = dataset([("x", "", mask)], [Phase(9, 1, 1, side=64)], target="half")[0, 0, 0].targets[0, 0]
    assert target.sum() > half.sum() and (target >= half).all()


def test_a_referent_thinner_than_a_pixel_of_the_target_is_still_there(dataset):
    speck = mask_of(20, 33, 21, 34)
    assert dataset([("x", "", speck)], target="half")[0, 0, 0].targets.sum() == 1
    nothing = np.zeros_like(speck)
    assert not dataset([("x", "nothing", nothing)], target="half")[0, 0, 0].targets.any()


def test_typed_sentences_are_crop_proof_unless_they_name_a_place_or_tell_siblings_apart(tmp_path):
    def proof(expression, **values):
        row = Row(tmp_path, 1, 1, 1, expression, "", kind="typed", segment_ids=(4,), label="dog")
        return crop_proof(dataclasses.replace(row, **values))

    assert all(map(proof, ["dog", "Brown dog with a ball", "laptop", "farmer's backpack", "wall behindhand"]))
    placed = [
        "dog on the left",
        "LEFTMOST dog",
        "dog in back",
        "dog, right side",
        "the bigger dog",
        "2nd dog",
        "top dog",
    ]
    assert not any(map(proof, placed))
    assert not proof("dog", siblings=1) and not proof("both dogs", segment_ids=(4, 5))
    assert not proof("an elephant", kind="nothing", segment_ids=())


@given(st.lists(st.sampled_from(["category", "typed", "nothing"]), max_size=30), st.sampled_from([0.25, 0.5, 1.0]))
def test_a_phase_draws_its_share_of_typed_expressions(kinds, share):
    rows = [Row(Path("a.png"), 1, 1, 1, str(n), "", kind=kind) for n, kind in enumerate(kinds)]
    drawn = draw(rows, Phase(1, 1, 8, 12, typed=share))
    typed = [row for row in drawn if row.kind != "category"]
    there, others = sum(kind != "category" for kind in kinds), kinds.count("category")
    count = min(12, len(rows))
    assert len(drawn) == count
    due = share * count
    assert due <= len(typed) < due + 1 or len(typed) == there or len(drawn) - len(typed) == others


def test_what_another_photograph_alone_holds_is_answered_by_nothing(dataset):
    bag = Row(dataset([BAG]).photos[0][0].image, 1, HEIGHT, WIDTH, "the bag", encode_mask(REFERENT), label="bag")
    bag = dataclasses.replace(bag, kind="category")

    def shown(*others, absent=1.0):
        photos = [[bag] * 3, [dataclasses.replace(bag, **{"label": "hat", "expression": "a hat"} | o) for o in others]]
        samples = [photo_dataset(photos, seed=seed, absent=absent)[0, 0, 0] for seed in range(20)]
        return [
            (e, bool(t.any())) for sample in samples for e, t in zip(sample.expressions, sample.targets, strict=True)
        ]

    assert set(shown({})) == {("the bag", True), ("a hat", False)}
    assert set(shown({}, absent=0.0)) == {("the bag", True)}
    for unfit in (
        {"label": "bag", "expression": "a bag"},  # it is here
        {"expression": "the red thing"},  # there may be another here
        {"kind": "position"},
        {"split": "other photographs"},
    ):
        assert set(shown(unfit)) == {("the bag", True)}, unfit


def test_rivals_are_the_others_of_the_label(dataset):
    """A pair of shoes, a third one, and a hat: each shoe's rivals are those that its row does not mean."""
    photo = dataset([BAG]).photos[0][0].image
    masks = [mask_of(30, left, 44, left + 8) for left in (4, 20, 44)]

    def row(text, ids, label="shoe", siblings=2):
        mask = np.logical_or.reduce([masks[i] for i in ids]) if ids else REFERENT
        own = {"segment_ids": tuple(ids), "label": label, "siblings": siblings}
        return Row(photo, 1, HEIGHT, WIDTH, text, encode_mask(mask), kind="category", **own)

    rows = [
        row("first", [0]),
        row("second", [1]),
        row("third", [2]),
        row("pair", [0, 1], siblings=1),
        row("hat", [], "hat", 0),
    ]
    for share in (0.0, 1.0):
        sample = photo_dataset([rows], [Phase(9, 1, 9)], mirror=share)[0, 0, 0]
        target, rivals = (dict(zip(sample.expressions, maps, strict=True)) for maps in (sample.targets, sample.rivals))
        for text, others in {"first": "second third", "third": "first second", "pair": "third", "hat": ""}.items():
            expected = sum((target[other] for other in others.split()), torch.zeros(1, 16, 16))
            torch.testing.assert_close(rivals[text], expected, rtol=0, atol=1 / 255)


@given(st.lists(st.booleans(), max_size=30), st.sampled_from([0.25, 0.5, 0.7, 1.0]))
def test_rows_that_fit_are_mixed_in_by_their_share(having, share):
    rows = [Row(Path("a.png"), 1, 1, 1, str(n), "", siblings=int(has)) for n, has in enumerate(having)]
    mixed = mix(rows, share, lambda row: row.siblings > 0)
    assert sorted(mixed, key=lambda row: int(row.expression)) == rows
    for has in (True, False):
        assert [row for row in mixed if bool(row.siblings) == has] == [row for row in rows if bool(row.siblings) == has]
    for first in range(1, len(rows) + 1):
        due, had = share * first, sum(row.siblings > 0 for row in mixed[:first])
        short = had == sum(having) or first - had == len(having) - sum(having)
        assert due <= had < due + 1 or short


def test_phases_set_sizes_and_counts(dataset):
    rows = [(str(n), "", REFERENT) for n in range(6)]
    data = dataset(rows, [Phase(1, 1, 0, aligned=5), Phase(1, 1, 2, aligned=4, side=32), Phase(1, 1, 9)])
    sizes = [
        (len(s.expressions), s.answered, s.image.shape[-1], s.targets.shape[-1])
        for s in map(data.__getitem__, [(0, n, 0) for n in range(3)])
    ]
    assert sizes == [(5, 0, 64, 16), (4, 2, 32, 8), (6, 6, 64, 16)]


def test_the_grid_keeps_its_cells_of_pixels():
    config = tiny_config(image_size=320, grid=20)
    assert [scaled_grid(side, config) for side in (320, 256, 192, 16)] == [20, 16, 12, 2]


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 9), st.sampled_from([0.35, 0.6, 1.0]))
@settings(max_examples=60, deadline=None)
def test_crops_lie_inside_and_show_the_least_that_is_asked(width, height, seed, least):
    left, top, right, bottom = random_crop(np.random.default_rng(seed), (width, height), least)
    for start, end, length in ((left, right, width), (top, bottom, height)):
        assert 0 <= start < end <= length
        assert end - start >= max(1, least * length - 0.5)


def test_zoom_makes_things_large(dataset):
    """The referent covers 29% of the photograph; of the smallest crops of 0.6, it covers at most 29 / 0.36 = 80%."""
    shares = {
        zoom: max(dataset([BAG], crop=1.0, zoom=zoom)[0, step, 0].targets.mean().item() for step in range(60))
        for zoom in (0.6, 0.2)
    }
    assert shares[0.6] < 0.81 < shares[0.2]


def test_jitter_keeps_which_colour_is_strongest(dataset):
    images = [dataset([BAG], jitter=0.5)[0, step, 0].image for step in range(5)]
    assert len({round(image.mean().item(), 4) for image in images}) == 5
    assert all(torch.equal(image[0], image[2]) for image in images)  # grey stays grey


def test_grey_photographs(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(tmp_path / "red.png")
    row = Row(tmp_path / "red.png", 1, HEIGHT, WIDTH, "the wall", encode_mask(REFERENT))
    for share, grey in ((0.0, False), (1.0, True)):
        image = photo_dataset([[row]], greyscale=share)[0, 0, 0].image
        assert torch.equal(image[0], image[2]) == grey


def test_collated_batch(dataset):
    data = dataset([("the bag", "", REFERENT), ("the red bag here", "", ~REFERENT)], [Phase(1, 2, 1, aligned=2)])
    tokenizer = WordTokenizer.from_expressions(["the red bag here"])
    samples = [data[0, 0, 0], data[0, 0, 1]]
    batch = Collate(tokenizer, word_dropout=0.0)(samples)
    assert batch["images"].shape == (2, 3, 64, 64)
    assert batch["photo_of"].tolist() == [0, 0, 1, 1]
    assert batch["answered"].tolist() == [True, False, True, False]
    assert batch["targets"].shape == (4, 1, 16, 16)
    texts = [text for sample in samples for text in sample.expressions]
    assert torch.equal(batch["ids"], torch.from_numpy(tokenizer(texts).ids))
    for maps in ("targets", "rivals"):
        assert torch.equal(batch[maps], torch.cat([getattr(sample, maps) for sample in samples]))
    dropped = Collate(tokenizer, word_dropout=1.0)(samples)
    assert (dropped["ids"] == torch.where(batch["mask"], tokenizer.unknown_id, 0)).all()


@given(
    kinds=st.lists(st.sampled_from(["category", "colour", "position"]), min_size=1),
    wanted=st.sets(st.sampled_from(["category", "colour"])),
    expressions=st.integers(0, 3),
    aligned=st.integers(0, 6),
)
def test_the_network_is_asked_anything_and_the_alignment_its_kinds_in_turn(kinds, wanted, expressions, aligned):
    rows = [
        Row(image=Path("a.png"), image_id=1, expression=str(number), counts="", height=1, width=1, kind=kind)
        for number, kind in enumerate(kinds)
    ]
    drawn = draw(rows, Phase(1, 1, expressions, aligned, kinds=sorted(wanted)))
    assert drawn[:expressions] == rows[:expressions] or not expressions
    for_alignment = drawn[expressions:]
    fitting = [row for row in rows[expressions:] if row.kind in wanted or not wanted]
    if expressions or (fitting and aligned):
        assert len(for_alignment) == min(max(0, aligned - expressions), len(fitting))
    else:
        assert drawn == rows[:1]
    if wanted and fitting and aligned:
        counts = {kind: sum(row.kind == kind for row in for_alignment) for kind in wanted}
        left = {kind: sum(row.kind == kind for row in fitting) - counts[kind] for kind in wanted}
        # A kind is shown less often than another only when it has no more to show.
        assert all(counts[one] >= counts[other] - 1 or not left[one] for one in wanted for other in wanted)
