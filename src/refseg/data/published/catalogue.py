"""The four datasets as published: names, splits, counts, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from refseg.errors import RefsegError


class Counts(NamedTuple):
    """The published size of a split."""

    expressions: int
    referents: int
    photographs: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset under one partition into splits."""

    name: str
    title: str
    folders: tuple[str, ...]
    """What its folder may be called, in lower case; the first is the publisher's name."""
    partition: str
    """Who cut it into splits, as in refs(unc).p."""
    splits: dict[str, Counts]
    photographs: str
    """The collection that its photographs are from; two datasets of one collection may share some."""
    sources: tuple[str, ...]
    """Where its files come from, in words."""
    benchmark: str = ""
    """How the files of the hub's refcoco-benchmark begin that hold it."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of published files, where on record."""

    def check_split(self, split: str) -> None:
        """Raises RefsegError if there is no such split."""
        if split not in self.splits:
            raise RefsegError(f"{self.name} has no split {split!r}; one of: {', '.join(self.splits)}")


_COCO = (
    "photographs: '2014 Train images' on the download page of cocodataset.org, unpacked as ROOT/train2014",
    "expressions and masks: {} from the README of the repository lichengunc/refer on GitHub, unpacked in ROOT",
)


def _coco(archive: str) -> tuple[str, ...]:
    return tuple(line.format(archive) for line in _COCO)


# Referents and photographs of UNC, UNC+ and G-Ref: the catalogue of TensorFlow Datasets, "ref_coco".
# Expressions: UNC val, testA and testB counted in the published texts. docs/datasets.md says which other
# numbers could be confirmed and how.
_UNC = Dataset(
    name="unc",
    title="UNC (RefCOCO)",
    folders=("refcoco", "unc"),
    partition="unc",
    splits={
        "train": Counts(120_624, 42_404, 16_994),
        "val": Counts(10_834, 3_811, 1_500),
        "testA": Counts(5_657, 1_975, 750),
        "testB": Counts(5_095, 1_810, 750),
    },
    photographs="COCO train2014",
    sources=_coco("refcoco.zip"),
    benchmark="refcoco_unc_",
)
_UNC_PLUS = Dataset(
    name="unc+",
    title="UNC+ (RefCOCO+)",
    folders=("refcoco+", "refcocoplus", "unc+"),
    partition="unc",
    splits={
        "train": Counts(120_191, 42_278, 16_992),
        "val": Counts(10_758, 3_805, 1_500),
        "testA": Counts(5_726, 1_975, 750),
        "testB": Counts(4_889, 1_798, 750),
    },
    photographs="COCO train2014",
    sources=_coco("refcoco+.zip"),
    benchmark="refcoco_plus_unc_",
)
_GREF_UMD = Dataset(
    name="gref-umd",
    title="G-Ref (RefCOCOg), UMD partition",
    folders=("refcocog", "gref"),
    partition="umd",
    splits={
        "train": Counts(80_512, 42_226, 21_899),
        "val": Counts(4_896, 2_573, 1_300),
        "test": Counts(9_602, 5_023, 2_600),
    },
    photographs="COCO train2014",
    sources=_coco("refcocog.zip"),
    benchmark="refcocog_umd_",
)
_GREF_GOOGLE = Dataset(
    name="gref-google",
    title="G-Ref (RefCOCOg), Google partition",
    folders=("refcocog", "gref"),
    partition="google",
    splits={"train": Counts(85_474, 44_822, 24_698), "val": Counts(9_536, 5_000, 4_650)},
    photographs="COCO train2014",
    sources=_coco("refcocog.zip"),
    benchmark="refcocog_google_",
)
# Counted in the published query files.
_REFERIT = Dataset(
    name="referit",
    title="ReferIt (RefCLEF)",
    folders=("referit", "refclef", "exp-referit"),
    partition="berkeley",
    splits={
        "train": Counts(54_134, 44_649, 8_995),
        "val": Counts(5_842, 4_866, 1_000),
        "trainval": Counts(59_976, 49_515, 9_995),
        "test": Counts(60_105, 49_730, 9_994),
    },
    photographs="SAIAPR TC-12",
    sources=(
        "photographs and masks: referitdata.tar.gz from the README of the repository ronghanghu/text_objseg on "
        "GitHub, its images/ and mask/ unpacked in ROOT/referit",
        "expressions: referit_query_*.json from the folder exp-referit/data of the same repository, in ROOT/referit",
    ),
    hashes={
        "referit_query_train.json": "70c9e6dd170c1cddbb345a765864d4e7da2f6dabff213973367d588ac28e20a6",
        "referit_query_val.json": "efb5ba835d3d820f4ca29a702ba6ad5112ff0d23c14644f323015095e92a245d",
        "referit_query_test.json": "8ede8ab6f4853c5402aa7a1cedf8323f6c317d94085f765684db65f51857e464",
    },
)

DATASETS = {dataset.name: dataset for dataset in (_UNC, _UNC_PLUS, _GREF_UMD, _GREF_GOOGLE, _REFERIT)}

_ALIASES = {
    "refcoco": "unc",
    "refcoco+": "unc+",
    "gref": "gref-google",  # the partition of the paper's table
    "refcocog": "gref-umd",
    "refclef": "referit",
}


def find_dataset(name: str) -> Dataset:
    """The dataset of a name or of the field's other name for it. Raises RefsegError that lists the names."""
    known = name.strip().lower()
    known = _ALIASES.get(known, known)
    if known not in DATASETS:
        others = ", ".join(f"{alias} is {meant}" for alias, meant in _ALIASES.items())
        raise RefsegError(f"there is no dataset {name!r}; one of: {', '.join(DATASETS)} ({others})")
    return DATASETS[known]
