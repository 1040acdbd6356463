"""Batches for training: photographs with some of their expressions, drawn by step so that any run can resume."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.utils.data import Dataset, Sampler

from refseg.data.expressions.generate import mirror_expression
from refseg.data.table import Row
from refseg.errors import RefsegError
from refseg.photo import read_photo
from refseg.training.recipe import DataRecipe, Phase
from refseg.transforms import to_square
from refseg.words import WordTokenizer

log = logging.getLogger(__name__)

CROP_PROOF = ("category", "colour", "stuff")
"""Kinds of expressions that stay true in every crop that shows their referent."""
Key = tuple[int, int, int]
"""Photograph, step, and position within the step."""


@dataclass(frozen=True)
class Sample:
    """One photograph as the network sees it."""

    image: torch.Tensor
    """(3, S, S) float32 in 0..1."""
    expressions: list[str]
    targets: torch.Tensor
    """(E, 1, 4·grid, 4·grid) float32: the share of each cell that the referent covers."""
    rivals: torch.Tensor
    """Like targets: the share that others of the referent's label cover; zero where it is the only one."""
    answered: int
    """How many of the expressions, the first ones, the whole network answers."""
    seed: int = 0
    """For what is drawn once the samples are a batch."""


class PhotoSampler(Sampler[list[Key]]):
    """The photographs of each step for one process; shuffled anew each time all have been seen."""

    def __init__(
        self, photos: int, phases: Sequence[Phase], steps: range, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.photos, self.phases, self.steps = photos, phases, steps
        self.seed, self.rank, self.world = seed, rank, world

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Key]]:
        shown = sum(phase_at(self.phases, s).photos for s in range(self.steps.start)) * self.world
        for step in self.steps:
            per_process = phase_at(self.phases, step).photos
            first = shown + self.rank * per_process
            yield [(self._photo(first + i), step, self.rank * per_process + i) for i in range(per_process)]
            shown += per_process * self.world

    def _photo(self, place: int) -> int:
        round_, index = divmod(place, self.photos)
        order = np.random.default_rng((self.seed, round_)).permutation(self.photos)
        return int(order[index])


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase that a step belongs to; the last one goes on as long as needed."""
    for phase in phases:
        if step < phase.steps:
            return phase
        step -= phase.steps
    return phases[-1]


class PhotoDataset(Dataset[Sample]):
    """Photographs by `Key`, with expressions drawn and augmented so that every sentence stays true."""

    def __init__(
        self,
        photos: Sequence[list[Row]],
        phases: Sequence[Phase],
        recipe: DataRecipe,
        image_size: int,
        grid: int,
        seed: int,
    ) -> None:
        self.photos = photos
        self.phases, self.recipe, self.seed = phases, recipe, seed
        self.image_size, self.grid = image_size, grid

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: Key) -> Sample:
        """One damaged photograph is passed over for the next; RefsegError where that is damaged as well."""
        index, step, place = key
        try:
            return self._sample(key)
        except RefsegError as fault:
            log.warning("skipped: %s", fault)
            return self._sample(((index + 1) % len(self.photos), step, place))

    def _sample(self, key: Key) -> Sample:
        index, step, place = key
        rng = np.random.default_rng((self.seed, step, place))
        phase = phase_at(self.phases, step)
        side = phase.side or self.image_size
        cells = 4 * scaled_grid(side, self.image_size, self.grid)
        rows = self.photos[index]
        photo = read_photo(rows[0].image)
        box: tuple[int, int, int, int] | None = None
        if rng.random() < self.recipe.crop:
            box = random_crop(rng, photo.size)
            rows = [row for row in rows if row.kind in CROP_PROOF] or rows
            box = box if rows[0].kind in CROP_PROOF else None
        mirrored = bool(rng.random() < self.recipe.mirror)
        drawn = draw([rows[i] for i in rng.permutation(len(rows))], phase)
        shares = self._shares(drawn, box, mirrored, cells)
        if box is not None:
            if seen := [row for row in drawn if shares[row.counts].any()]:
                drawn = seen
            else:
                box, shares = None, self._shares(drawn, None, mirrored, cells)
        rivals = [rivals_of(row, self.photos[index]) for row in drawn]
        shares |= self._shares([other for other in chain(*rivals) if other.counts not in shares], box, mirrored, cells)
        targets = [shares[row.counts] for row in drawn]
        nothing = np.zeros((cells, cells), np.uint8)
        taken = [reduce(np.maximum, (shares[other.counts] for other in others), nothing) for others in rivals]
        photo = jitter(rng, _shown(photo, box, mirrored), self.recipe.jitter)
        expressions = [mirror_expression(r.expression) if mirrored else r.expression for r in drawn]
        for i in np.flatnonzero(rng.random(len(drawn)) < self.recipe.absent):
            if (absent := self._absent(rng, self.photos[index])) is not None:
                expressions[i], targets[i], taken[i] = absent, nothing, nothing
        return Sample(
            image=to_square(photo, side),
            expressions=expressions,
            targets=_stacked(targets),
            rivals=_stacked(taken),
            answered=min(phase.expressions, len(drawn)),
            seed=int(rng.integers(2**32)),
        )

    def _absent(self, rng: np.random.Generator, rows: list[Row]) -> str | None:
        """An expression of another photograph whose label this one lacks; None where none is at hand.

        Only sentences that name their label, and only of the same set: another set may leave unlabelled
        what this one labels.
        """
        present = {row.label for row in rows}
        there = self.photos[int(rng.integers(len(self.photos)))]
        fitting = [
            row.expression
            for row in there
            if row.split == rows[0].split
            and row.kind in CROP_PROOF
            and row.label
            and row.label not in present
            and row.label in row.expression
        ]
        return fitting[rng.integers(len(fitting))] if fitting else None

    def _shares(
        self, rows: list[Row], box: tuple[int, int, int, int] | None, mirrored: bool, cells: int
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The share of each cell that a mask covers, (cells, cells) uint8 of 255, by the mask's run lengths."""
        shares: dict[str, np.ndarray[Any, Any]] = {}
        for row in rows:
            if row.counts not in shares:
                mask = _shown(Image.fromarray(row.mask().astype(np.uint8) * 255), box, mirrored)
                shares[row.counts] = np.array(mask.resize((cells, cells), Image.Resampling.BOX))
        return shares


def draw(rows: list[Row], phase: Phase) -> list[Row]:
    """The first rows, for the whole network, and those for the alignment loss behind them."""
    if phase.siblings:
        rows = mix_siblings(rows, phase.siblings)
    answered, rest = rows[: phase.expressions], rows[phase.expressions :]
    if phase.kinds:
        rest = take_turns([row for row in rest if row.kind in phase.kinds])
    return (answered + rest)[: max(phase.aligned, phase.expressions)] or rows[:1]


def take_turns(rows: list[Row]) -> list[Row]:
    """The first row of each kind, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    turns = []
    for row in rows:
        turns.append(seen[row.kind])
        seen[row.kind] += 1
    return [row for _, row in sorted(zip(turns, rows, strict=True), key=lambda pair: pair[0])]


def mix_siblings(rows: list[Row], share: float) -> list[Row]:
    """Of the first rows, however many, the share has siblings: as long as there are rows of both kinds."""
    having, lacking = ([row for row in rows if bool(row.siblings) == has][::-1] for has in (True, False))
    mixed: list[Row] = []
    while having and lacking:
        due = sum(row.siblings > 0 for row in mixed) < share * (len(mixed) + 1)
        mixed.append((having if due else lacking).pop())
    return mixed + having[::-1] + lacking[::-1]


def rivals_of(row: Row, rows: Sequence[Row]) -> list[Row]:
    """Those of a photograph's rows that mean others of the row's label."""
    own = set(row.segment_ids)
    return [other for other in rows if row.siblings and other.label == row.label and own.isdisjoint(other.segment_ids)]


class Collate:
    """Samples become the keyword arguments of the network under training; see `train.Trainee`."""

    def __init__(self, tokenizer: WordTokenizer, word_dropout: float) -> None:
        self.tokenizer, self.word_dropout = tokenizer, word_dropout

    def __call__(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        tokens = self.tokenizer([text for sample in samples for text in sample.expressions])
        # Drawn by sample, so that neither workers nor processes, nor how long the others are, change a thing.
        width = self.tokenizer.max_words
        drawn = [np.random.default_rng(s.seed).random((len(s.expressions), width)) for s in samples]
        dropped = torch.from_numpy(np.concatenate(drawn) < self.word_dropout)[:, : tokens.ids.shape[1]]
        photo_of = [i for i, sample in enumerate(samples) for _ in sample.expressions]
        answered = [e < sample.answered for sample in samples for e in range(len(sample.expressions))]
        return {
            "images": torch.stack([sample.image for sample in samples]),
            "ids": torch.where(dropped & tokens.mask, self.tokenizer.unknown_id, tokens.ids),
            "mask": tokens.mask,
            "photo_of": torch.tensor(photo_of),
            "targets": torch.cat([sample.targets for sample in samples]),
            "rivals": torch.cat([sample.rivals for sample in samples]),
            "answered": torch.tensor(answered),
        }


def scaled_grid(side: int, image_size: int, grid: int) -> int:
    """The grid for another input side, so that a cell covers as many pixels as at the model's own."""
    return max(2, round(grid * side / image_size))


def random_crop(rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box (left, top, right, bottom) of 0.6 to 1 of each side of a photograph (width, height)."""
    starts, ends = [], []
    for length in size:
        kept = max(1, round(length * rng.uniform(0.6, 1.0)))
        starts.append(int(rng.integers(0, length - kept + 1)))
        ends.append(starts[-1] + kept)
    return starts[0], starts[1], ends[0], ends[1]


def jitter(rng: np.random.Generator, photo: Image.Image, strength: float) -> Image.Image:
    """Brightness and contrast change by up to `strength`; hue does not, for sentences name colours."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast):
        photo = enhance(photo).enhance(1 + float(rng.uniform(-strength, strength)))
    return photo


def _shown(picture: Image.Image, box: tuple[int, int, int, int] | None, mirrored: bool) -> Image.Image:
    picture = picture if box is None else picture.crop(box)
    return ImageOps.mirror(picture) if mirrored else picture


def _stacked(shares: list[np.ndarray[Any, Any]]) -> torch.Tensor:
    return torch.from_numpy(np.stack(shares)).float().unsqueeze(1) / 255
