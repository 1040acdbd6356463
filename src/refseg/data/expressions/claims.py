"""What can truly be said of the segments of one photograph.

A sentence is kept if its claim is +1 for its referent and −1 for everything else that its noun could mean.
A borderline neighbour rules it out as a second match does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from refseg.data.expressions import geometry, phrases
from refseg.data.expressions.colours import BASIC
from refseg.data.expressions.geometry import Segment
from refseg.data.expressions.lexicon import CARRIED, LONG, SUPPORTS, SURROUNDINGS, TALL, UPRIGHT, WORN
from refseg.data.expressions.names import Name, anything, hypernyms
from refseg.data.expressions.phrases import Speaker
from refseg.data.expressions.segments import SegmentedPhoto

Claim = Callable[[Segment], int]


@dataclass(frozen=True, slots=True)
class Sentence:
    """An expression and the segments that it means together."""

    kind: str
    referent: tuple[Segment, ...]
    expression: str


@dataclass(frozen=True, slots=True)
class Subject:
    """A segment, what it is called, and the others that could be called the same."""

    photo: SegmentedPhoto
    speaker: Speaker
    segment: Segment
    name: Name
    others: tuple[Segment, ...]
    colour: str = ""
    """The colour in front of the noun, if only segments of that colour are compared."""

    def singles_out(self, claim: Claim) -> bool:
        return claim(self.segment) == 1 and all(claim(other) == -1 for other in self.others)

    @property
    def presumed(self) -> bool:
        """Whether there is another segment with the same plain name, as "the biggest bag" implies."""
        return any(self.name.is_plain_for(other.label) for other in self.others)

    @property
    def countable(self) -> bool:
        """Whether people would agree on how many there are."""
        return not any(other.tiny or other.crowd for other in self.others) and self.name.means is not None

    def say(self, kind: str, forms: str, **parts: str) -> Sentence:
        if self.colour:
            forms = forms.replace("{n}", "{colour} {n}")
            parts["colour"] = self.speaker.colour(self.colour)
        if kind in ("category", "colour", "position") and (self.segment.stuff or self.segment.label == "skin"):
            kind = "stuff"
        worn = self.segment.label in WORN and self.photo.count["person"] <= 1
        return Sentence(kind, (self.segment,), self.speaker.say(forms, self.name, parts, worn=worn))

    def labels(self) -> set[str]:
        return {self.segment.label, *(other.label for other in self.others)}


def sentences(photo: SegmentedPhoto, draw: random.Random) -> Iterator[Sentence]:
    """True and unambiguous sentences about a photograph. The same photograph and draw give the same sentences."""
    speaker = Speaker(draw)
    anchors = _anchors(photo, speaker)
    for segment in photo.segments:
        if segment.tiny or segment.crowd:
            continue
        for _ in range(4 if photo.count[segment.label] > 1 else 1):
            for name in [*_own_names(photo, speaker, segment), *_broad_names(photo, speaker, segment)]:
                yield from _about(_subject(photo, speaker, segment, name), anchors)
    yield from _several(photo, speaker)


def _subject(photo: SegmentedPhoto, speaker: Speaker, segment: Segment, name: Name) -> Subject:
    others = tuple(other for other in photo.candidates(name) if other is not segment)
    return Subject(photo, speaker, segment, name, others)


def _own_names(photo: SegmentedPhoto, speaker: Speaker, segment: Segment) -> list[Name]:
    """One or two of the segment's own names, most often the plainest."""
    names_here = photo.names(segment)
    drawn = speaker.draw.sample(names_here[:1] * 2 + names_here, 2) if names_here else []
    return list({name.word: name for name in drawn}.values())


def _broad_names(photo: SegmentedPhoto, speaker: Speaker, segment: Segment) -> Iterator[Name]:
    """Sometimes a word for a whole class ("vehicle"), a word for anything, or none at all."""
    for name in hypernyms(segment.label):
        if speaker.draw.random() < 0.3 and photo.usable(name):
            yield name
    name = speaker.draw.choice(anything())
    if speaker.draw.random() < 0.4 and photo.usable(name) and not segment.stuff and segment.label != "skin":
        yield name
    if (row := _row(photo)) and segment.label in row:
        yield Name("", "", "one", row, row)


def _row(photo: SegmentedPhoto) -> frozenset[str]:
    """The one label with three or more segments, if every other label has one. "2nd from left" then counts it."""
    many = [label for label, count in photo.count.items() if count > 1]
    placed = not photo.unplaced and len(many) == 1 and photo.count[many[0]] > 2
    return frozenset(many) if placed else frozenset()


def _about(subject: Subject, anchors: list[tuple[Segment, str]]) -> Iterator[Sentence]:
    if subject.name.word == "" and subject.name.means is not None:
        yield from _counted(subject)
        return
    if not subject.others and subject.name.word:
        yield subject.say("category", "{n}")
        yield subject.say("category", "{n}")
    yield from _told_apart(subject)
    if subject.presumed:
        yield from _compared(subject)
        yield from _within_colour(subject)
        if subject.name.number == "one" and subject.name.word:
            yield from _denied(subject)
    if subject.name.means is not None:
        yield from _related(subject, anchors)


# ---------------------------------------------------------------- colour and place


def _colour_claims(subject: Subject) -> Iterator[tuple[str, dict[str, str], Claim]]:
    segment, speaker = subject.segment, subject.speaker
    colour = segment.colours.name()
    if colour and segment.label not in ("person", "skin"):
        yield phrases.COLOURED, {"c": speaker.colour(colour)}, lambda other: other.colours.truth(colour)
    if segment.torso is not None and (dress := segment.torso.name()) in _DRESS_COLOURS and subject.name.word:
        yield phrases.DRESSED, {"c": dress}, lambda other: _dressed_in(other, dress)


# Skin and hair belong to the upper body too; they never have these colours.
_DRESS_COLOURS = ("black", "white", "red", "blue", "green", "yellow")


def _dressed_in(person: Segment, colour: str) -> int:
    if person.torso is not None and (truth := person.torso.truth(colour)) != -1:
        return truth
    return -1 if person.colours.perhaps[BASIC.index(colour)] < 0.12 else 0


def _region_claim(region: str) -> Claim:
    return lambda segment: geometry.in_region(segment, region)


def _told_apart(subject: Subject) -> Iterator[Sentence]:
    """Sentences by colour, by place, and by both."""
    segment, draw = subject.segment, subject.speaker.draw
    colours = list(_colour_claims(subject))
    regions = [region for region in geometry.REGIONS if geometry.in_region(segment, region) == 1]
    for forms, parts, claim in colours:
        if subject.singles_out(claim):
            yield subject.say("colour", forms, **parts)
    for region in regions:
        in_region = _region_claim(region)
        if region in ("middle", "center") and len(subject.others) == 2 and not _between_two(subject):
            continue
        worthwhile = bool(subject.others) or (segment.label != "skin" and draw.random() < 0.5)
        if worthwhile and subject.singles_out(in_region):
            yield subject.say("position", phrases.PLACES[region])
        for forms, parts, claim in colours:
            both = _both(claim, in_region)
            if forms == phrases.COLOURED and draw.random() < 0.4 and subject.singles_out(both):
                place = subject.speaker.pick(phrases.PLACES[region])
                yield subject.say("position" if subject.others else "colour", place.replace("{n}", "{c} {n}"), **parts)


def _both(first: Claim, second: Claim) -> Claim:
    return lambda segment: min(first(segment), second(segment))


# ---------------------------------------------------------------- comparison with the others


def _compared(subject: Subject) -> Iterator[Sentence]:
    yield from _outermost(subject)
    yield from _counted(subject)
    yield from _by_size(subject)
    yield from _by_depth(subject)


def _outermost(subject: Subject) -> Iterator[Sentence]:
    segment, others = subject.segment, subject.others
    for side in ("left", "right", "top", "bottom"):
        if geometry.outermost(segment, others, side) < 1:
            continue
        if side in ("top", "bottom") and subject.name.word and len(subject.labels()) > 1:
            continue
        yield subject.say("ordinal", phrases.OUTERMOST[side])
        pair = len(others) == 1 and subject.countable and side in ("left", "right")
        if pair or (subject.countable and geometry.apart(segment, others, side)):
            yield subject.say("position", phrases.SIDES[side])
            yield subject.say("position", phrases.SIDES[side])
    if subject.countable and _between_two(subject):
        yield subject.say("position", phrases.PLACES["middle"])


def _between_two(subject: Subject) -> bool:
    """Whether the segment is the middle one of three, and no other is nearer the middle of the photograph."""
    second = len(subject.others) == 2 and geometry.rank(subject.segment, subject.others, "left") == 2
    return second and all(geometry.in_region(other, "middle") < 1 for other in subject.others)


def _counted(subject: Subject) -> Iterator[Sentence]:
    if not subject.countable or subject.name.number != "one" or len(subject.labels()) > 1:
        return
    for side in geometry.row_sides((subject.segment, *subject.others)):
        place = geometry.rank(subject.segment, subject.others, side)
        nearer_half = place <= len(subject.others) // 2 + 2
        if place in phrases.PLACE_WORDS and nearer_half:
            for _ in range(2):
                number = subject.speaker.pick(phrases.PLACE_WORDS[place])
                yield subject.say("ordinal", phrases.COUNTED, k=number, s=side)


_SIZE_JUDGES: dict[str, tuple[Callable[[Segment, Segment], int], frozenset[str] | None]] = {
    "largest": (geometry.larger, None),
    "smallest": (lambda segment, other: geometry.larger(other, segment), None),
    "tallest": (geometry.taller, TALL),
    "shortest": (lambda segment, other: geometry.taller(other, segment), TALL),
    "longest": (geometry.taller, LONG),
}
"""Each judgement, and the labels for which it makes sense."""


def _by_size(subject: Subject) -> Iterator[Sentence]:
    for size, (judge, sensible) in _SIZE_JUDGES.items():
        if sensible is not None and not subject.labels() <= sensible:
            continue
        if all(judge(subject.segment, other) == 1 for other in subject.others):
            few = len(subject.others) < 3 and bool(subject.name.word)
            yield subject.say("size", phrases.SIZES[size] if few else phrases.SUPERLATIVES[size])
            yield subject.say("size", phrases.SIZES[size] if few else phrases.SUPERLATIVES[size])


def _by_depth(subject: Subject) -> Iterator[Sentence]:
    if not subject.labels() <= UPRIGHT or not subject.name.word:
        return
    nearer = {geometry.nearer_to_camera(subject.segment, other) for other in subject.others}
    step = subject.segment.label in WORN  # one shoe is a step behind the other, but not in the background
    near, far = (phrases.STEP_NEARER, phrases.STEP_FARTHER) if step else (phrases.NEARER, phrases.FARTHER)
    if len(nearer) == 1 and 0 not in nearer:
        for _ in range(3):
            yield subject.say("closest", near if 1 in nearer else far)


def _within_colour(subject: Subject) -> Iterator[Sentence]:
    """ "Small red cup": compared among those of its colour only, where it is clear who they are."""
    colour = subject.segment.colours.name()
    truths = [other.colours.truth(colour) for other in subject.others] if colour else []
    if subject.segment.label == "person" or 0 in truths or -1 not in truths or 1 not in truths:
        return
    same = tuple(other for other, truth in zip(subject.others, truths, strict=True) if truth == 1)
    if all(subject.name.is_plain_for(other.label) for other in same):
        yield from _compared(replace(subject, others=same, colour=colour))


def _denied(subject: Subject) -> Iterator[Sentence]:
    """By what is true of all the others and surely not of the referent: "the person not on the left"."""
    segment, others = subject.segment, subject.others
    for region, preposition in (
        ("left", "on"),
        ("right", "on"),
        ("top", "at"),
        ("bottom", "at"),
        ("middle", "in"),
    ):
        if all(geometry.in_region(other, region) == 1 for other in others) and (
            geometry.in_region(segment, region) == -1
        ):
            yield subject.say("negation", phrases.NOT_THERE, p=preposition, r=region)
    for colour in BASIC:
        if all(other.colours.truth(colour) == 1 for other in others) and segment.colours.truth(colour) == -1:
            yield subject.say("negation", phrases.NOT_COLOURED, c=colour)
    if len(others) > 1 or not subject.countable:
        return
    for side in ("left", "right"):
        if geometry.further(others[0], segment, side) == 1:
            yield subject.say("negation", phrases.NOT_THAT_SIDE[side])
    if geometry.larger(others[0], segment) == 1:
        yield subject.say("negation", phrases.NOT_LARGER)
    if geometry.larger(segment, others[0]) == 1:
        yield subject.say("negation", phrases.NOT_SMALLER)


# ---------------------------------------------------------------- relations


def _anchors(photo: SegmentedPhoto, speaker: Speaker) -> list[tuple[Segment, str]]:
    """Segments that a relation can refer to, each with words that identify it."""
    found = []
    for segment in photo.segments:
        if segment.tiny or segment.crowd or segment.area < 0.001 or segment.label == "skin":
            continue
        for name in _own_names(photo, speaker, segment)[:2]:
            subject = _subject(photo, speaker, segment, name)
            article = speaker.pick("the |the |" if name.number == "one" else "the ||")
            if (told := _adjective(subject)) is not None:
                found.append((segment, article + told + name.word))
    return found


def _adjective(subject: Subject) -> str | None:
    """What identifies the segment in front of its name: nothing, a colour or a side. None if nothing does."""
    if not subject.others:
        return ""
    colour = subject.segment.colours.name() if subject.segment.label != "person" else ""
    if colour and all(other.colours.truth(colour) == -1 for other in subject.others):
        return subject.speaker.colour(colour) + " "
    if len(subject.others) == 1 and subject.presumed and subject.countable:
        for side in ("left", "right"):
            if geometry.outermost(subject.segment, subject.others, side) == 1:
                return side + " "
    return None


def _related(subject: Subject, anchors: list[tuple[Segment, str]]) -> Iterator[Sentence]:
    photo, draw = subject.photo, subject.speaker.draw
    usable = [
        (anchor, words)
        for anchor, words in anchors
        if anchor is not subject.segment and not subject.name.could_mean(anchor.label)
    ]
    for anchor, words in draw.sample(usable, min(8, len(usable))):
        for relation, claim in _relations(photo, anchor):
            if subject.singles_out(claim):
                yield subject.say("relation", phrases.RELATIONS[relation], a=words)
        if subject.presumed and not any(other.crowd for other in subject.others):
            if geometry.closest_to(subject.segment, subject.others, anchor):
                yield subject.say("relation", phrases.RELATIONS["closest"], a=words)
            if len(subject.others) < 4 and geometry.farthest_from(subject.segment, subject.others, anchor):
                yield subject.say("relation", phrases.RELATIONS["farthest"], a=words)
    for (first, words), (second, more) in combinations(draw.sample(usable, min(5, len(usable))), 2):
        if first is not second and subject.singles_out(_between(first, second)):
            yield subject.say("relation", phrases.RELATIONS["between"], a=words, b=more)


def _between(first: Segment, second: Segment) -> Claim:
    return lambda segment: geometry.between(segment, first, second)


def _relations(photo: SegmentedPhoto, anchor: Segment) -> Iterator[tuple[str, Claim]]:
    """What may be claimed about a segment in relation to the anchor."""

    def beside(side: str) -> Claim:
        return lambda segment: geometry.beside(segment, anchor, side)

    for side in ("left", "right", "top", "bottom"):
        yield side, beside(side)
    if not anchor.stuff:
        yield "next", lambda segment: geometry.next_to(segment, anchor)
    if anchor.label in SUPPORTS:
        yield "ground" if anchor.stuff else "on", lambda segment: photo.rests_on(segment, anchor)
    if anchor.label in SURROUNDINGS:
        yield "in", lambda segment: photo.lies_in(segment, anchor)
    if anchor.label in CARRIED:
        yield "with", lambda segment: geometry.belongs_to(anchor, segment) if segment.label == "person" else 0


# ---------------------------------------------------------------- several


def _several(photo: SegmentedPhoto, speaker: Speaker) -> Iterator[Sentence]:
    """All segments with a name, a counted part of them in one place or of one colour, or all but one."""
    for name in _collective_names(photo, speaker):
        members = photo.candidates(name)
        if len(members) < 2 or not all(name.is_plain_for(segment.label) for segment in members):
            continue
        worn = all(segment.label in WORN for segment in members) and photo.count["person"] <= 1

        def say(
            forms: str, referent: Sequence[Segment], name: Name = name, worn: bool = worn, **parts: str
        ) -> Sentence:
            words = speaker.say(forms, name, {"m": name.word, **parts}, many=True, worn=worn)
            return Sentence("several", tuple(referent), words)

        yield say(phrases.ALL, members)
        yield say(phrases.ALL, members)
        if any(segment.tiny or segment.crowd for segment in members):
            continue
        if len(members) in phrases.ALL_COUNTED:
            yield say(phrases.ALL_COUNTED[len(members)], members)
            yield say(phrases.ALL_COUNTED[len(members)], members)
        yield from _parts(speaker, members, say)


def _parts(speaker: Speaker, members: Sequence[Segment], say: Callable[..., Sentence]) -> Iterator[Sentence]:
    def coloured(colour: str) -> Claim:
        return lambda segment: segment.colours.truth(colour)

    claims = [
        (phrases.PLACES[region], _region_claim(region)) for region in ("left", "right", "top", "bottom", "middle")
    ]
    if members[0].label != "person":
        claims += [(f"{colour} {{n}}|{{n}} that are {colour}", coloured(colour)) for colour in BASIC]
    for forms, claim in claims:
        truths = [claim(segment) for segment in members]
        chosen = [segment for segment, truth in zip(members, truths, strict=True) if truth == 1]
        if 0 in truths or not 2 <= len(chosen) < len(members):
            continue
        yield say(forms, chosen)
        if len(chosen) in phrases.NUMBERS:
            number = speaker.pick(phrases.NUMBERS[len(chosen)])
            yield say(speaker.pick(forms).replace("{n}", "{k} {n}"), chosen, k=number)
    for side in ("left", "right"):
        for segment in members if len(members) > 2 else ():
            rest = [other for other in members if other is not segment]
            if geometry.outermost(segment, rest, side) == 1:
                yield say(phrases.ALL_BUT[side], rest)


def _collective_names(photo: SegmentedPhoto, speaker: Speaker) -> list[Name]:
    """Names that have a plural, sometimes broad ones."""
    found: dict[str, Name] = {}
    for segment in photo.segments:
        if photo.count[segment.label] > 1:
            found |= {name.word: name for name in _own_names(photo, speaker, segment) if name.plural}
        for name in hypernyms(segment.label):
            if name.plural and photo.usable(name) and speaker.draw.random() < 0.1:
                found[name.word] = name
    return list(found.values())
