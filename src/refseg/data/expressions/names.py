"""The words people use for a category, and which other categories the same words could mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from refseg.data.expressions.lexicon import ANYTHING, CONFUSABLE, HYPERNYMS, IRREGULAR_PLURALS, NAMES


@dataclass(frozen=True, slots=True)
class Name:
    """A noun, and the labels that people could mean by it."""

    word: str
    plural: str
    """The plural of the word. "" if it has none, or is one already."""
    number: str
    """"one" (a dress), "many" (the jeans) or "mass" (the grass)."""
    means: frozenset[str] | None
    """The labels that the noun could mean. None if it could mean anything."""
    plainly: frozenset[str] | None
    """The labels that usually have this name. "the biggest bag" implies another of them."""

    def could_mean(self, label: str) -> bool:
        return self.means is None or label in self.means

    def is_plain_for(self, label: str) -> bool:
        return self.plainly is None or label in self.plainly


def plural(word: str) -> str:
    """The plural of a noun phrase whose head is its last word, or the word before "of"."""
    head, of, rest = word.partition(" of ")
    *before, noun = head.split(" ")
    if noun in IRREGULAR_PLURALS:
        many = IRREGULAR_PLURALS[noun]
    elif re.search(r"(s|x|z|ch|sh)$", noun):
        many = noun + "es"
    elif re.search(r"[^aeiou]y$", noun):
        many = noun[:-1] + "ies"
    else:
        many = noun + "s"
    return " ".join([*before, many]) + of + rest


def _lines(text: str) -> list[list[str]]:
    return [[name.strip() for name in line.split(",")] for line in text.strip().splitlines() if line.strip()]


@cache
def _spoken() -> dict[str, list[str]]:
    spoken = {}
    for line in NAMES.strip().splitlines():
        label, _, names = line.partition(":")
        if label:
            spoken[label] = [name.strip() for name in names.split(",") if name.strip()]
    return spoken


@cache
def spoken_names(label: str) -> tuple[str, ...]:
    """The marked names of a label. For an unknown label, its own words without the data set's suffixes."""
    if label in _spoken():
        return tuple(_spoken()[label])
    word = re.sub(r"[-_ ](merged|other|stuff)\b", "", label.lower())
    return (re.sub(r"[-_\s]+", " ", word).strip(),)


@cache
def _confusable(label: str) -> frozenset[str]:
    return frozenset({label}).union(*(line for line in _lines(CONFUSABLE) if label in line))


@cache
def _owners(word: str) -> frozenset[str]:
    """The known labels that have this word among their names."""
    return frozenset(label for label, names in _spoken().items() if any(name.lstrip("~=&") == word for name in names))


def _name(marked: str, paired: bool, means: frozenset[str] | None, plainly: frozenset[str] | None) -> Name:
    mark, word = (marked[0], marked[1:]) if marked[:1] in ("~", "=", "&") else ("", marked)
    if mark == "~" or (mark == "&" and not paired):
        return Name(plural(word) if mark == "&" else word, "", "many", means, plainly)
    if mark == "=":
        return Name(word, "", "mass", means, plainly)
    return Name(word, plural(word) if word else "", "one", means, plainly)


@cache
def names(label: str, alone: bool) -> tuple[Name, ...]:
    """Names for a segment of the label, plainest first. `alone`: no other segment of the photograph has the label."""
    found = []
    for marked in spoken_names(label):
        owners = _owners(marked.lstrip("~=&")) | {label}
        means = frozenset[str]().union(*(_confusable(owner) for owner in owners))
        found.append(_name(marked, not alone, means, owners))
    return tuple(found)


@cache
def hypernyms(label: str) -> tuple[Name, ...]:
    """Broader names of a label ("vehicle"), but none that could mean anything. Empty for a label without names."""
    if not spoken_names(label):
        return ()
    return tuple(
        _name(marked, True, frozenset(labels.split(", ")), frozenset(labels.split(", ")))
        for marked, labels in HYPERNYMS.items()
        if label in labels.split(", ")
    )


@cache
def anything() -> tuple[Name, ...]:
    """Names that could mean any segment."""
    return tuple(_name(word, True, None, None) for word in ANYTHING)
