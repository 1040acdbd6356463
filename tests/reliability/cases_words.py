"""What is asked: expressions and thresholds, one row a case, with what must come of it.

Expected of an expression: what it reads as (NFC, white space and control characters made one space) where it is
answered, or a `Refusal`.
"""

from __future__ import annotations

from dataclasses import dataclass

from refseg.words import MAX_CHARACTERS


@dataclass(frozen=True)
class Refusal:
    """Words of the one sentence that refuses."""

    words: str


EMPTY, LONG, HALF = Refusal("empty"), Refusal(f"{MAX_CHARACTERS:,}"), Refusal("UTF-8")
AS_IT_IS = None

EXPRESSIONS: dict[str, tuple[str, str | Refusal | None]] = {
    "nothing": ("", EMPTY),
    "white space": (" \t\n\u00a0", EMPTY),
    "control characters alone": ("\0\x07\x1b", EMPTY),
    "invisible characters alone": ("\u200b\u200d\ufeff", EMPTY),
    "line separators alone": ("\u2028\u2029", EMPTY),
    "private use alone": ("\ue000\U000f0000", EMPTY),
    "100,000 characters": ("red " * 25_000, LONG),
    "100,000 letters": ("x" * 100_000, LONG),
    "one too many": ("x" * (MAX_CHARACTERS + 1), LONG),
    "just short enough": ("x" * MAX_CHARACTERS, AS_IT_IS),
    "1,000 words": ("a " * 499 + "a", AS_IT_IS),
    "a high surrogate": ("the \ud83d bag", HALF),
    "a low surrogate": ("\udc00", HALF),
    "surrogates in the wrong order": ("\udc00\ud83d", HALF),
    "a byte that is no text": ("the bag \udcff", HALF),
    "one letter": ("a", AS_IT_IS),
    "one digit": ("7", AS_IT_IS),
    "punctuation": ("?!… — .,;", AS_IT_IS),
    "a dash": ("-", AS_IT_IS),
    "an option": ("--help", AS_IT_IS),
    "a path": ("/etc/passwd", AS_IT_IS),
    "a pattern": ("[a-z]*.png", AS_IT_IS),
    "quotes": ("\"the\" 'red' `bag`", AS_IT_IS),
    "unknown words": ("gleaming zeppelin", AS_IT_IS),
    "reserved words": ("<unk> <pad>", AS_IT_IS),
    "another script": ("красная сумка слева", AS_IT_IS),
    "no spaces": ("赤いバッグ", AS_IT_IS),
    "right to left": ("התיק האדום", AS_IT_IS),
    "right to left by override": ("the \u202egab der", AS_IT_IS),
    "isolated directions": ("\u2067bag\u2069", AS_IT_IS),
    "emoji": ("the 🐈 👨‍👩‍👧", AS_IT_IS),
    "flags and skin tones": ("🇺🇳 👋🏿", AS_IT_IS),
    "variation selectors": ("❤\ufe0f", AS_IT_IS),
    "mathematical letters": ("𝐭𝐡𝐞 𝓻𝓮𝓭", AS_IT_IS),
    "full width": ("ｔｈｅ　ｂａｇ", "ｔｈｅ ｂａｇ"),
    "ligatures that grow": ("\ufdfa" * 50, AS_IT_IS),
    "composed": ("café", AS_IT_IS),
    "decomposed": ("cafe\u0301", "café"),
    "singleton that composes": ("\u212bngström", "Ångström"),
    "a thousand accents": ("a" + "\u0301" * 999, "á" + "\u0301" * 998),
    "accents on nothing": ("\u0301\u0302", AS_IT_IS),
    "spaces to fold": ("  the\tred\r\nbag ", "the red bag"),
    "control characters between": ("the\x01red\x1b[31mbag", "the red [31mbag"),
    "NUL between": ("the\0red\0bag", "the red bag"),
    "line separators between": ("the\u2028red\u2029bag", "the red bag"),
    "a byte order mark": ("\ufeffthe dog", AS_IT_IS),
    "capitals": ("THE RED BAG", AS_IT_IS),
    "capitals that grow": ("İSTANBUL ẞ ŉ", AS_IT_IS),
    "markup": ("<script>alert(1)</script> &amp; <b>dog</b>", AS_IT_IS),
    "format strings": ("%s %n {0.__class__} {} ${x} $(id)", AS_IT_IS),
    "escapes": (r"\n \x00 \u0000 \\", AS_IT_IS),
    "a query": ("'; DROP TABLE dogs; --", AS_IT_IS),
    "json": ('{"expression": "dog"}', AS_IT_IS),
    "a template": ("{{ 7 * 7 }} {% dog %}", AS_IT_IS),
    "zero width within a word": ("d\u200bog", AS_IT_IS),
    "unassigned characters": ("dog \U000e0fff", AS_IT_IS),
    "the last character of all": ("dog \U0010ffff", AS_IT_IS),
}

THRESHOLDS: dict[str, bool] = {
    **dict.fromkeys(("0.5", "0.001", "0.999", "1e-9", ".25"), True),
    **dict.fromkeys(
        ("-1", "-0.1", "0", "-0", "1", "1.0", "2", "40", "1e300", "1e-400", "nan", "NaN", "inf", "-inf"), False
    ),
    **dict.fromkeys(("high", "0,5", "0x1", "0.5.0", "50%", "1/2", "½", "None", "true", "[0.5]"), False),
}
"""A threshold as it is typed, and whether it decides anything."""
