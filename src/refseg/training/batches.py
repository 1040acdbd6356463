"""Batches for training: photographs with some of their expressions, drawn by step so that any run can resume."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.utils.data import Dataset, Sampler

from refseg.data.expressions.generate import mirror_expression
from refseg.data.expressions.typed import KIND as TYPED
from refseg.data.expressions.typed import NOTHING
from refseg.data.table import Row
from refseg.errors import RefsegError
from refseg.evaluation.protocols import SHNET
from refseg.models.interface import ReferringConfig
from refseg.photo import read_photo
from refseg.training.recipe import DataRecipe, Phase, TrainingRecipe
from refseg.transforms import letterboxed, to_square
from refseg.words import WordTokenizer

log = logging.getLogger(__name__)

CROP_PROOF = ("category", "colour", "stuff")
"""Kinds of generated expressions that stay true in every crop that shows their referent."""
PLACES = frozenset(
    "left right leftmost rightmost lefthand righthand top bottom topmost bottommost upper lower uppermost lowermost "  # noqa: SIM905
    "highest lowest middle center centre central corner edge side sides end far farthest furthest near nearest close "
    "closest closer foreground background front back behind big bigger biggest large larger largest small smaller "
    "smallest little tiny huge tall taller tallest short shorter shortest first second third fourth 1st 2nd 3rd 4th "
    "last next other another".split()
)
"""Words of place, size or rank. A crop can make a typed sentence with one of them untrue."""
Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a crop, in pixels of the photograph."""
Key = tuple[int, int, int]
"""A visit to a photograph, the step, and the position within the step.

Of N photographs, the visits to number p are p, p + N, p + 2N, … Each shows another part of its expressions.
"""


@dataclass(frozen=True)
class Sample:
    """One photograph as the network sees it."""

    image: torch.Tensor
    """(3, S, S) float32 in 0..1."""
    expressions: list[str]
    targets: torch.Tensor
    """What the mask logits are compared with, (E, 1, t, t) float32 in 0..1. See `TrainingRecipe.target`."""
    rivals: torch.Tensor
    """Like `targets`, but where other segments with the referent's label are. Zero if there are none."""
    answered: int
    """The whole network answers this many expressions, the first ones."""
    seed: int = 0
    """The seed for what is drawn when samples become a batch."""


class View(NamedTuple):
    """How a photograph is shown."""

    side: int
    """Side S of the network input, in pixels."""
    box: Box | None
    """The part that is shown. None shows everything."""
    mirrored: bool

    def show(self, picture: Image.Image) -> Image.Image:
        """The photograph, or a mask of its size, in this view."""
        picture = picture if self.box is None else picture.crop(self.box)
        return ImageOps.mirror(picture) if self.mirrored else picture

    def say(self, expression: str) -> str:
        """The expression that is true of this view."""
        return mirror_expression(expression) if self.mirrored else expression


class PhotoSampler(Sampler[list[Key]]):
    """The visits of each batch, for one process. They are shuffled again after all have been made."""

    def __init__(
        self, parts: Sequence[int], training: TrainingRecipe, steps: range, rank: int = 0, world: int = 1
    ) -> None:
        """`parts`: how often each photograph is visited in a round (see `PhotoDataset.parts`).

        `steps`: the remaining steps of the run. `rank` and `world` are torchrun's.
        """
        self.visits = [photo + part * len(parts) for photo, count in enumerate(parts) for part in range(count)]
        self.training, self.steps = training, steps
        self.rank, self.world = rank, world
        self.order: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.steps) * self.training.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        shares = self.world * self.training.accumulate
        shown = sum(phase_at(self.training.phases, step).photos for step in range(self.steps.start)) * shares
        for step in self.steps:
            count = phase_at(self.training.phases, step).photos
            for batch in range(self.training.accumulate):
                first = (batch * self.world + self.rank) * count
                yield [(self._visit(shown + place), step, place) for place in range(first, first + count)]
            shown += count * shares

    def _visit(self, place: int) -> int:
        round_, index = divmod(place, len(self.visits))
        if round_ != self.order[0]:
            order = np.random.default_rng((self.training.seed, round_)).permutation(len(self.visits))
            self.order = (round_, order)
        return self.visits[self.order[1][index]]


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase of a step. The last phase has no end."""
    for phase in phases:
        if step < phase.steps:
            return phase
        step -= phase.steps
    return phases[-1]


class PhotoDataset(Dataset[Sample]):
    """Photographs by `Key`. Expressions are drawn, and augmented so that every sentence stays true."""

    def __init__(
        self, photos: Sequence[list[Row]], data: DataRecipe, training: TrainingRecipe, config: ReferringConfig
    ) -> None:
        """`photos` has the rows of each photograph, and `config` belongs to the network that is trained."""
        self.photos, self.data, self.training, self.config = photos, data, training, config

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def parts(self) -> list[int]:
        """How many visits each photograph needs until all of its expressions are shown."""
        if self.data.draw == "photographs":
            return [1] * len(self.photos)
        return [ceil(len(rows) / self.training.phases[0].expressions) for rows in self.photos]

    def __getitem__(self, key: Key) -> Sample:
        """The sample of a visit. The next photograph replaces a damaged one; RefsegError if that is damaged as well."""
        visit, step, place = key
        try:
            return self._sample(key)
        except RefsegError as fault:
            log.warning("skipped: %s", fault)
            return self._sample(((visit + 1) % len(self.photos), step, place))

    def _sample(self, key: Key) -> Sample:
        """Makes a sample in three steps: the view, the expressions, and the right answers."""
        visit, step, place = key
        part, index = divmod(visit, len(self.photos))
        rng = np.random.default_rng((self.training.seed, step, place))
        phase = phase_at(self.training.phases, step)
        photo = read_photo(self.photos[index][0].image)
        view, rows = self._view(rng, phase, photo.size, self._part(index, part))
        asked = draw([rows[i] for i in rng.permutation(len(rows))], phase)
        targets, rivals = self._targets(view, asked, self.photos[index])
        expressions = [view.say(row.expression) for row in asked]
        for number in np.flatnonzero(rng.random(len(asked)) < self.data.absent):
            if (absent := self._absent(rng, self.photos[index])) is not None:
                expressions[number] = absent
                targets[number] = rivals[number] = 0
        shown = view.show(photo)
        if rng.random() < self.data.greyscale:
            shown = ImageOps.grayscale(shown).convert("RGB")
        return Sample(
            image=torch.from_numpy(
                to_square(jitter(rng, shown, self.data.jitter), view.side, letterbox=self.config.letterbox)
            ),
            expressions=expressions,
            targets=targets,
            rivals=rivals,
            answered=min(phase.expressions, len(asked)),
            seed=int(rng.integers(2**32)),
        )

    def _part(self, index: int, part: int) -> list[Row]:
        """The rows that a visit may ask about a photograph: all, or one of the parts that a round asks in turn."""
        rows = self.photos[index]
        if self.data.draw == "photographs":
            return rows
        size = self.training.phases[0].expressions
        order = np.random.default_rng((self.training.seed, index)).permutation(len(rows))
        return [rows[number] for number in order[part * size : (part + 1) * size]]

    def _view(
        self, rng: np.random.Generator, phase: Phase, size: tuple[int, int], rows: list[Row]
    ) -> tuple[View, list[Row]]:
        """A view of a photograph of `size` (width, height), and the rows that are true of it."""
        side = phase.side or self.config.image_size
        mirrored = bool(rng.random() < self.data.mirror)
        if rng.random() < self.data.crop:
            box = random_crop(rng, size, self.data.zoom)
            if shown := rows_within(rows, box):
                return View(side, box, mirrored), shown
        return View(side, None, mirrored), rows

    def _targets(self, view: View, asked: list[Row], rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """The right answers, and where the rivals of each referent are. See `Sample`."""
        side = self._target_side(view.side)
        maps: dict[str, np.ndarray[Any, Any]] = {}

        def target(row: Row) -> np.ndarray[Any, Any]:
            if row.counts not in maps:
                mask = view.show(Image.fromarray(row.mask().astype(np.uint8) * 255))
                if self.config.letterbox:
                    mask = letterboxed(mask, view.side, Image.Resampling.BOX)
                if self.training.target == "dilated":
                    maps[row.counts] = SHNET.bring_target(np.asarray(mask) > 0, view.side).astype(np.float32)
                else:
                    share = np.asarray(mask.resize((side, side), Image.Resampling.BOX), np.float32) / 255
                    maps[row.counts] = share if self.training.target == "cells" else covered(share)
            return maps[row.counts]

        nothing = np.zeros((side, side), np.float32)
        targets = [target(row) for row in asked]
        rivals = [reduce(np.maximum, map(target, rivals_of(row, rows)), nothing) for row in asked]
        return torch.from_numpy(np.stack(targets)).unsqueeze(1), torch.from_numpy(np.stack(rivals)).unsqueeze(1)

    def _target_side(self, side: int) -> int:
        """The side of the targets, in pixels, for a network input of `side` pixels."""
        if self.training.target == "cells":
            gridded = self.config.output_side == self.config.grid * self.config.magnification
            return scaled_grid(side, self.config) * self.config.magnification if gridded else self.config.output_side
        return side if self.training.target == "full" else side // 2

    def _absent(self, rng: np.random.Generator, rows: list[Row]) -> str | None:
        """An expression of another photograph whose label is not in this one. None if the drawn photograph has none.

        It must name its label and be of the same set, because another set may not label everything.
        """
        present = {row.label for row in rows}
        others = self.photos[int(rng.integers(len(self.photos)))]
        fitting = [
            row.expression
            for row in others
            if row.split == rows[0].split
            and crop_proof(row)
            and row.label
            and row.label not in present
            and row.label in row.expression
        ]
        return fitting[rng.integers(len(fitting))] if fitting else None


def crop_proof(row: Row) -> bool:
    """Whether the expression stays true in every crop that shows its referent.

    A typed expression does if its referent has no siblings and it has none of the words in PLACES.
    """
    if row.kind != TYPED:
        return row.kind in CROP_PROOF
    words = re.findall(r"[a-z0-9]+", row.expression.lower())
    return not row.siblings and len(row.segment_ids) == 1 and PLACES.isdisjoint(words)


def rows_within(rows: Sequence[Row], box: Box) -> list[Row]:
    """The rows that stay true in a crop and whose referents are at least partly inside it."""
    left, top, right, bottom = box
    fitting = [row for row in rows if crop_proof(row)]
    shown = {row.counts: row for row in fitting}
    within = {counts for counts, row in shown.items() if row.mask()[top:bottom, left:right].any()}
    return [row for row in fitting if row.counts in within]


def covered(share: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The mask (t, t) float32 of 0 and 1: the pixels of which at least half is covered.

    A referent too thin for that keeps the pixels it covers most. An empty target would teach that it is not there.
    """
    return (share >= min(0.5, max(float(share.max()), 1e-6))).astype(np.float32)


def draw(rows: list[Row], phase: Phase) -> list[Row]:
    """The rows for the whole network, followed by those for the alignment loss."""
    if phase.siblings:
        rows = mix(rows, phase.siblings, lambda row: row.siblings > 0)
    if phase.typed:
        rows = mix(rows, phase.typed, lambda row: row.kind in (TYPED, NOTHING))
    answered, rest = rows[: phase.expressions], rows[phase.expressions :]
    if phase.kinds:
        rest = take_turns([row for row in rest if row.kind in phase.kinds])
    return (answered + rest)[: max(phase.aligned, phase.expressions)] or rows[:1]


def take_turns(rows: list[Row]) -> list[Row]:
    """Reorders rows: the first of each kind, then the second of each kind, and so on."""
    seen: Counter[str] = Counter()
    turns = []
    for row in rows:
        turns.append(seen[row.kind])
        seen[row.kind] += 1
    return [row for _, row in sorted(zip(turns, rows, strict=True), key=lambda pair: pair[0])]


def mix(rows: list[Row], share: float, fits: Callable[[Row], bool]) -> list[Row]:
    """Interleaves rows so that every prefix contains about `share` rows that fit, until one kind runs out."""
    fitting, others = ([row for row in rows if fits(row) == wanted][::-1] for wanted in (True, False))
    mixed: list[Row] = []
    taken = 0
    while fitting and others:
        due = taken < share * (len(mixed) + 1)
        mixed.append((fitting if due else others).pop())
        taken += due
    return mixed + fitting[::-1] + others[::-1]


def rivals_of(row: Row, rows: Sequence[Row]) -> list[Row]:
    """The rows of a photograph that mean other segments with this row's label."""
    if not row.siblings:
        return []
    return [other for other in rows if other.label == row.label and set(row.segment_ids).isdisjoint(other.segment_ids)]


class Collate:
    """Makes the keyword arguments of `trainer.Trainee` from samples."""

    def __init__(self, tokenizer: WordTokenizer, word_dropout: float) -> None:
        self.tokenizer, self.word_dropout = tokenizer, word_dropout

    def __call__(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        tokens = self.tokenizer([text for sample in samples for text in sample.expressions])
        ids, mask = torch.as_tensor(tokens.ids), torch.as_tensor(tokens.mask)
        # Drawn per sample, so that workers, processes and the length of other sentences change nothing.
        width = self.tokenizer.max_words
        drawn = [np.random.default_rng(s.seed).random((len(s.expressions), width)) for s in samples]
        dropped = torch.from_numpy(np.concatenate(drawn) < self.word_dropout)[:, : ids.shape[1]]
        photo_of = [i for i, sample in enumerate(samples) for _ in sample.expressions]
        answered = [e < sample.answered for sample in samples for e in range(len(sample.expressions))]
        return {
            "images": torch.stack([sample.image for sample in samples]),
            "ids": torch.where(dropped & mask, self.tokenizer.unknown_id, ids),
            "mask": mask,
            **({} if tokens.heads is None else {"heads": torch.as_tensor(tokens.heads)}),
            "photo_of": torch.tensor(photo_of),
            "targets": torch.cat([sample.targets for sample in samples]),
            "rivals": torch.cat([sample.rivals for sample in samples]),
            "answered": torch.tensor(answered),
        }


def scaled_grid(side: int, config: ReferringConfig) -> int:
    """The grid for another input side. A cell covers as many pixels as at the model's own side."""
    return max(2, round(config.grid * side / config.image_size))


def random_crop(rng: np.random.Generator, size: tuple[int, int], least: float) -> Box:
    """A random box that keeps from `least` to 1 of each side of a photograph (width, height)."""
    starts, ends = [], []
    for length in size:
        kept = max(1, round(length * rng.uniform(least, 1.0)))
        starts.append(int(rng.integers(0, length - kept + 1)))
        ends.append(starts[-1] + kept)
    return starts[0], starts[1], ends[0], ends[1]


def jitter(rng: np.random.Generator, photo: Image.Image, strength: float) -> Image.Image:
    """Changes brightness and contrast by up to `strength`, but not hue, because sentences name colours."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast):
        photo = enhance(photo).enhance(1 + float(rng.uniform(-strength, strength)))
    return photo
