"""How people word a claim: the forms, one of which is drawn at random, and what may come before them.

Forms of one claim are separated by "|". {n} is the noun, {a} and {b} are what a relation refers to, {c} is a colour,
{k} a number and {s} a side. Every form about the left has a twin about the right, so a sentence can be mirrored.
"""

from __future__ import annotations

import random
import re

from refseg.data.expressions.names import Name


def _twins(forms: str) -> dict[str, str]:
    """The forms with {s} filled in, by side."""
    return {side: forms.replace("{s}", side) for side in ("left", "right")}


SIDES = _twins("{s} {n}|{s} {n}|{n} on {s}|{n} on the {s}|{n} {s}|{n} on the {s} side|{n} to the {s}|{s} side {n}") | {
    "top": "top {n}|upper {n}|{n} at the top|{n} on top|{n} at top|{n} up top",
    "bottom": "bottom {n}|lower {n}|{n} at the bottom|{n} on bottom|{n} at bottom|{n} on the bottom",
}
PLACES = SIDES | {
    "middle": "middle {n}|center {n}|{n} in the middle|{n} in middle|{n} in the center|{n} middle|central {n}",
    "center": "{n} in the center|{n} in center|center {n}|{n} in the very middle|{n} in the middle of the picture",
}
for _side, _forms in _twins("far {s} {n}|{n} on far {s}|{n} on the far {s}|{n} far {s}|{n} all the way {s}").items():
    PLACES[f"far {_side}"] = _forms
for _row, _also in (("top", "upper"), ("bottom", "lower")):
    for _side in ("left", "right"):
        _where, _else = f"{_row} {_side}", f"{_also} {_side}"
        PLACES[_where] = (
            f"{_where} {{n}}|{_else} {{n}}|{{n}} {_where}|{{n}} {_else}|{{n}} at {_where}|"
            f"{{n}} in the {_else}|{{n}} on the {_where}"
        )
        PLACES[f"{_where} corner"] = (
            f"{_where} corner {{n}}|{{n}} in the {_where} corner|{{n}} {_else} corner|{{n}} in {_else} corner|"
            f"{_else} corner {{n}}"
        )
OUTERMOST = _twins(
    "{s}most {n}|{s}most {n}|{s} most {n}|most {s} {n}|{n} furthest {s}|{n} closest to the {s} edge|"
    "{n} farthest to the {s}|first {n} from the {s}|first {n} from {s}|1st {n} from {s}|furthest {s} {n}"
) | {
    "top": "topmost {n}|highest {n}|top most {n}|uppermost {n}|{n} closest to the top|first {n} from the top",
    "bottom": "bottommost {n}|lowest {n}|bottom most {n}|{n} closest to the bottom|first {n} from the bottom",
}
COUNTED = (
    "{k} {n} from {s}|{k} {n} from the {s}|{n} {k} from {s}|{k} from {s} {n}|{n} {k} from the {s}|"
    "{k} {n} in from the {s}|{k} {n} counting from the {s}"
)
PLACE_WORDS = {2: "second|2nd", 3: "third|3rd", 4: "fourth|4th", 5: "fifth|5th", 6: "sixth|6th"}
RELATIONS = _twins(
    "{n} {s} of {a}|{n} to the {s} of {a}|{n} on the {s} of {a}|{n} on {s} of {a}|{n} to {s} of {a}|"
    "{n} on the {s} side of {a}"
) | {
    "top": "{n} above {a}|{n} above {a}|{n} over {a}|{n} higher than {a}",
    "bottom": "{n} below {a}|{n} under {a}|{n} beneath {a}|{n} underneath {a}|{n} lower than {a}",
    "next": "{n} next to {a}|{n} beside {a}|{n} by {a}|{n} near {a}|{n} close to {a}|{n} alongside {a}",
    "closest": "{n} closest to {a}|{n} nearest {a}|{n} nearest to {a}|closest {n} to {a}|{n} closer to {a}",
    "farthest": "{n} farthest from {a}|{n} furthest from {a}|{n} furthest away from {a}",
    "on": "{n} on {a}|{n} on {a}|{n} on top of {a}|{n} resting on {a}",
    "ground": "{n} on {a}|{n} out on {a}",
    "in": "{n} in {a}|{n} in {a}|{n} surrounded by {a}",
    "between": "{n} between {a} and {b}|{n} in between {a} and {b}",
    "with": "{n} with {a}|{n} who has {a}|{n} that has {a}",
}
SIZES = {
    "largest": "biggest {n}|largest {n}|big {n}|large {n}|bigger {n}|{n} that is biggest",
    "smallest": "smallest {n}|small {n}|little {n}|smaller {n}|tiny {n}|tiniest {n}",
    "tallest": "tallest {n}|tall {n}|taller {n}",
    "shortest": "shortest {n}|short {n}|shorter {n}",
    "longest": "longest {n}|long {n}|longer {n}",
}
SUPERLATIVES = {
    "largest": "biggest {n}|largest {n}|{n} that is biggest|{n} that is the largest",
    "smallest": "smallest {n}|tiniest {n}|{n} that is smallest",
    "tallest": "tallest {n}|{n} that is tallest",
    "shortest": "shortest {n}|{n} that is shortest",
    "longest": "longest {n}|{n} that is longest",
}
NEARER = (
    "closest {n}|front {n}|{n} in front|nearest {n}|{n} closest to us|{n} in the foreground|{n} in the front|"
    "{n} nearest the camera|{n} up front|front most {n}"
)
FARTHER = (
    "{n} in back|back {n}|{n} in the back|farthest {n}|{n} in the background|background {n}|furthest {n}|"
    "{n} farther away|{n} farthest back|{n} in the distance"
)
STEP_NEARER = (
    "front {n}|{n} in front|closest {n}|nearest {n}|{n} closest to us|closer {n}|{n} more in front|forward {n}"
)
STEP_FARTHER = "back {n}|{n} in back|{n} farther back|{n} farther away|{n} more in back|rear {n}"
COLOURED = "{c} {n}|{c} {n}|{c} {n}|{c} {n}|{n} that is {c}|{c} colored {n}"
DRESSED = "{n} in {c}|{n} wearing {c}|{n} dressed in {c}|{n} in the {c} top|{n} in {c} shirt|{n} with {c} shirt"
COLOUR_WORDS = {
    "grey": "gray|grey|gray",
    "beige": "beige|tan|cream",
    "purple": "purple|purple|violet",
    "black": "black|black|black|dark",
}
NOT_THERE = "{n} not {p} the {r}|{n} that is not {p} the {r}|{n} that isn't {p} the {r}|{n} which is not {p} the {r}"
NOT_COLOURED = "{n} that is not {c}|{n} not {c}|non {c} {n}|{n} that isn't {c}|{n} which is not {c}"
NOT_THAT_SIDE = _twins(
    "not the {s} {n}|{n} that's not the {s} one|{n} which isn't {s}most|not the {s} one but the other {n}"
)
NOT_LARGER = "not the bigger {n}|{n} that is not the biggest|{n} that isn't the big one"
NOT_SMALLER = "not the smaller {n}|{n} that is not the smallest|{n} that isn't the small one"

ALL = "{n}|{n}|all {n}|all the {n}|all of the {n}|every {m}|each {m}"
ALL_COUNTED = {
    2: "both {n}|both {n}|both of the {n}|both the {n}|pair of {n}|two {n}|2 {n}",
    3: "three {n}|all three {n}|3 {n}|all 3 {n}",
    4: "four {n}|all four {n}|4 {n}|all 4 {n}",
    5: "five {n}|all five {n}|5 {n}",
    6: "six {n}|all six {n}|6 {n}",
}
ALL_BUT = _twins(
    "all {n} except the {s}most one|all {n} but the {s}most|every {m} except the {s}most|"
    "all {n} besides the one furthest {s}"
)
NUMBERS = {2: "two|2", 3: "three|3", 4: "four|4", 5: "five|5", 6: "six|6"}

WEARERS = "her|her|her|his|the woman's|the guy's|the lady's|their|the girl's|the man's|lady's|woman's|the person's"
_BARE = frozenset("not non all every each both on in at first to".split())  # noqa: SIM905
_NEEDS_NOUN = re.compile(r"^first|^1st|\{n\} that")
_COMPARING = frozenset(
    "most leftmost rightmost topmost bottommost uppermost highest lowest biggest largest bigger smallest smaller "  # noqa: SIM905
    "tiniest tallest taller shortest shorter longest longer closest nearest closer farthest furthest "
    "second 2nd third 3rd fourth 4th fifth 5th sixth 6th 1st two three four five six 2 3 4 5 6 pair".split()
)


class Speaker:
    """Words claims by the draws of a seeded generator."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw

    def pick(self, forms: str) -> str:
        return self.draw.choice(forms.split("|"))

    def colour(self, colour: str) -> str:
        return self.pick(COLOUR_WORDS.get(colour, colour))

    def say(self, forms: str, name: Name, parts: dict[str, str], *, many: bool = False, worn: bool = False) -> str:
        """One of the forms with the name, sometimes after an article or, for something `worn`, a possessive."""
        noun = name.plural if many else name.word
        if not noun:
            forms = "|".join(form for form in forms.split("|") if not _NEEDS_NOUN.search(form))
        text = " ".join(self.pick(forms).format(n=noun, **parts).split())
        first = text.partition(" ")[0]
        if first in _BARE:
            return text
        compared = first in _COMPARING
        opening = self._opening(
            many=many or name.number == "many",
            worn=worn and bool(noun) and not compared,
            pointing=not compared and name.number != "mass",
        )
        return f"{opening} {text}" if opening else text

    def _opening(self, *, many: bool, worn: bool, pointing: bool) -> str:
        chance = self.draw.random()
        if chance < 0.52:
            return ""
        if worn and chance < 0.70:
            return self.pick(WEARERS)
        if chance < 0.90:
            return "the"
        if not pointing:
            return self.pick("the|find the|show me the")
        return self.pick("those|find the|show me the" if many else "that|a|find the|show me the")
