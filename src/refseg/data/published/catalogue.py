"""The five datasets as published: their names, splits and counts, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import NamedTuple

from refseg.errors import RefsegError


class Counts(NamedTuple):
    """The size of a split. In a published size, 0 stands for a number that could not be confirmed."""

    expressions: int
    referents: int
    photographs: int

    def confirms(self, found: Counts) -> bool:
        """Whether a copy's size agrees with this published one, as far as that is known."""
        return all(number in (0, other) for number, other in zip(self, found, strict=True))


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset, cut into splits in one way."""

    name: str
    title: str
    folders: tuple[str, ...]
    """What its folder may be called, in lower case. The first is the publisher's name."""
    partition: str
    """Who cut it into splits, as in the name refs(unc).p."""
    splits: dict[str, Counts]
    photographs: str
    """The collection that its photographs are from. Two datasets of one collection may share some."""
    sources: tuple[str, ...]
    """Where its files come from, in words."""
    references: str = "refs({partition}).p"
    """The published name of the file that holds its expressions."""
    benchmark: str = ""
    """How the names of its files begin in the hub's refcoco-benchmark."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of published files, by name, if on record."""

    @property
    def reference_files(self) -> tuple[str, str]:
        """The published name of the file that holds its expressions, and the name of the same in the other format."""
        name = PurePath(self.references.format(partition=self.partition))
        return name.name, name.with_suffix(".json" if name.suffix == ".p" else ".p").name

    def check_split(self, split: str) -> None:
        """Raises RefsegError if there is no such split."""
        if split not in self.splits:
            raise RefsegError(f"{self.name} has no split {split!r}; one of: {', '.join(self.splits)}")


_PHOTOGRAPHS = "photographs: '2014 Train images' on the download page of cocodataset.org, unpacked as ROOT/train2014"


def _coco(archive: str) -> tuple[str, ...]:
    return (
        _PHOTOGRAPHS,
        f"expressions and masks: {archive} from the README of the repository lichengunc/refer on GitHub, unpacked in "
        "ROOT",
    )


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

# Counts of the release that has these hashes, as its users report them. docs/datasets.md says what is not known.
_GREFCOCO = Dataset(
    name="grefcoco",
    title="gRefCOCO",
    folders=("grefcoco", "grefs"),
    partition="unc",
    splits={
        "train": Counts(0, 0, 0),
        "val": Counts(14_229, 0, 1_500),
        "testA": Counts(19_200, 0, 750),
        "testB": Counts(16_063, 0, 750),
    },
    photographs="COCO train2014",
    sources=(
        _PHOTOGRAPHS,
        "expressions and masks: grefs(unc).json and instances.json from the hub's data set FudanCVL/gRefCOCO, which "
        "the README of the repository henghuiding/gRefCOCO on GitHub also links, in ROOT/grefcoco",
    ),
    references="grefs({partition}).json",
    hashes={
        "grefs(unc).json": "cc37c5ff95373c78a6a3f98b4c7bc67fde387ea8514752a1392db64223eb3366",
        "instances.json": "7f86adb7f4c39db19c7f02a3cc604d17f8016e4c4e8312652d0acc4eae3a2cbd",
    },
)

DATASETS = {dataset.name: dataset for dataset in (_UNC, _UNC_PLUS, _GREF_UMD, _GREF_GOOGLE, _REFERIT, _GREFCOCO)}

_ALIASES = {
    "refcoco": "unc",
    "refcoco+": "unc+",
    "gref": "gref-google",  # the partition of the paper's table
    "refcocog": "gref-umd",
    "refclef": "referit",
}


def find_dataset(name: str) -> Dataset:
    """The dataset with that name, or with that other name in the field. Raises RefsegError that lists the names."""
    known = name.strip().lower()
    known = _ALIASES.get(known, known)
    if known not in DATASETS:
        others = ", ".join(f"{alias} is {meant}" for alias, meant in _ALIASES.items())
        raise RefsegError(f"there is no dataset {name!r}; one of: {', '.join(DATASETS)} ({others})")
    return DATASETS[known]
