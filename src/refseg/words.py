"""Words: a sentence becomes token ids, by a word-level vocabulary that travels with the checkpoint."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from refseg.errors import RefsegError

PADDING, UNKNOWN = "<pad>", "<unk>"
FILE = "tokenizer.json"
FREQUENT = 20
MAX_CHARACTERS = 1000
"""The longest expression that is accepted; the model reads far less of it."""
LETTERS = r"(?<![\p{L}\p{N}_])\p{L}+(?![\p{L}\p{N}_])"
"""What stands between characters that no word has, and is made of letters alone."""


def clean_expression(expression: object) -> str:
    """The expression in Unicode's composed form (NFC); control characters and white space become one space.

    Raises RefsegError if it is not a str, holds no visible character, has more than `MAX_CHARACTERS` characters,
    or is not valid Unicode.
    """
    if not isinstance(expression, str):
        raise RefsegError(f"an expression is a str, not a {type(expression).__name__}; give 'the red bag'")
    if len(expression) > MAX_CHARACTERS:
        raise RefsegError(
            f"the expression has {len(expression):,} characters and the limit is {MAX_CHARACTERS:,}; "
            "describe the thing in one sentence"
        )
    categories = [unicodedata.category(character) for character in expression]
    if "Cs" in categories:
        raise RefsegError("the expression holds half a character (a lone surrogate); decode the text as UTF-8")
    if all(category[0] in "CZ" for category in categories):
        raise RefsegError("the expression is empty; say what to find, such as 'the red bag'")
    plain = "".join(" " if c == "Cc" else character for character, c in zip(expression, categories, strict=True))
    return unicodedata.normalize("NFC", " ".join(plain.split()))


@dataclass(frozen=True)
class Tokens:
    """A batch of B sentences, T the length of its longest."""

    ids: npt.NDArray[np.int64]
    """(B, T); 0 past a sentence's end."""
    mask: npt.NDArray[np.bool_]
    """(B, T), True at words."""
    unknown: list[tuple[str, ...]]
    """Per sentence, the words outside the vocabulary."""
    truncated: list[bool]
    """Per sentence, whether words past the last admitted one were dropped."""
    heads: npt.NDArray[np.int64] | None = None
    """(B, T), the place of each word's head in the dependency tree, the root's own; see `WordTokenizer.parse`."""

    def unpadded(self) -> Iterator[dict[str, npt.NDArray[np.int64]]]:
        """Each sentence alone: ids (1, T) of its T words, and their heads (1, T) where there are trees."""
        parts = {"ids": self.ids} | ({} if self.heads is None else {"heads": self.heads})
        for row, mask in enumerate(self.mask):
            yield {name: values[row][mask][None] for name, values in parts.items()}


class WordTokenizer:
    """Lower case, one id a word, and punctuation split off or passed over; at most `max_words` words are read."""

    parse: Callable[[Sequence[Sequence[str]], Sequence[Sequence[int]]], Sequence[Sequence[int]]] | None = None
    """For networks that read trees: sentences, and the places of the words of each that are read → their heads, counted
    among them; see `data.parses.Parses`."""

    def __init__(self, tokenizer: Tokenizer, max_words: int = 25) -> None:
        self.tokenizer = tokenizer
        self.max_words = max_words
        self.unknown_id = int(tokenizer.token_to_id(UNKNOWN) or 0)

    @classmethod
    def from_expressions(
        cls, expressions: Iterable[str], others: Iterable[str] = (), *, max_words: int = 25, letters: bool = False
    ) -> WordTokenizer:
        """A vocabulary of every word in `expressions`, and of the frequent ones in `others`.

        A word of `others` that occurs fewer than FREQUENT times is mostly a typing error. With `letters`, only words
        made of letters are read, as in the code that SHNet's authors released: "2nd" and "3" are passed over.
        """
        tokenizer = _letters_tokenizer() if letters else _new_tokenizer()
        return cls(tokenizer, max_words).extended(expressions, others)

    def extended(self, expressions: Iterable[str], others: Iterable[str] = ()) -> WordTokenizer:
        """A vocabulary with this one's words under their ids, and those of `from_expressions` behind them."""
        counts = Counter(word for text in expressions for word in split_words(self.tokenizer, text))
        more = Counter(word for text in others for word in split_words(self.tokenizer, text))
        counts.update({word: count for word, count in more.items() if word in counts or count >= FREQUENT})
        vocabulary = self.vocabulary
        for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            vocabulary.setdefault(word, len(vocabulary))
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        tokenizer.normalizer, tokenizer.pre_tokenizer = self.tokenizer.normalizer, self.tokenizer.pre_tokenizer
        return WordTokenizer(tokenizer, self.max_words)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], max_words: int = 25) -> WordTokenizer:
        """Reads a checkpoint's vocabulary. Raises RefsegError where it is missing or damaged."""
        file = Path(folder) / FILE
        try:
            tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except FileNotFoundError as fault:
            raise RefsegError(f"{folder} lacks its vocabulary {FILE}; copy the whole checkpoint") from fault
        except Exception as fault:  # the library raises bare Exceptions
            raise RefsegError(f"{file} is not a vocabulary ({fault}); copy the checkpoint again") from fault
        numbers = tokenizer.get_vocab().values()
        whole = tokenizer.normalizer and tokenizer.pre_tokenizer and max(numbers, default=0) < len(numbers)
        if not whole or tokenizer.token_to_id(PADDING) != 0 or tokenizer.token_to_id(UNKNOWN) is None:
            raise RefsegError(f"{file} is not a refseg vocabulary; copy the checkpoint again")
        return cls(tokenizer, max_words)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Writes the vocabulary so that `transformers.AutoTokenizer` reads it too."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / FILE).write_text(self.tokenizer.to_str(pretty=False), encoding="utf-8")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": PADDING,
            "unk_token": UNKNOWN,
            "model_max_length": self.max_words,
        }
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

    @property
    def vocabulary(self) -> dict[str, int]:
        return dict(self.tokenizer.get_vocab())

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def __call__(self, expressions: Sequence[str]) -> Tokens:
        """Unknown punctuation is passed over; a sentence without any word reads as one unknown word."""
        vocabulary = self.tokenizer.token_to_id
        whole = [split_words(self.tokenizer, expression) for expression in expressions]
        places = [
            [place for place, w in enumerate(sentence) if vocabulary(w) is not None or not _is_punctuation(w)]
            for sentence in whole
        ]
        words = [[sentence[place] for place in kept] or [""] for sentence, kept in zip(whole, places, strict=True)]
        read = [sentence[: self.max_words] for sentence in words]
        longest = max(map(len, read), default=1)
        ids = np.zeros((len(read), longest), dtype=np.int64)
        mask = np.zeros((len(read), longest), dtype=np.bool_)
        for row, sentence in enumerate(read):
            found = [vocabulary(word) for word in sentence]
            ids[row, : len(found)] = [self.unknown_id if number is None else number for number in found]
            mask[row, : len(found)] = True
        heads = None
        if self.parse:
            heads = np.zeros((len(read), longest), dtype=np.int64)
            for row, tree in enumerate(self.parse(whole, [kept[: self.max_words] for kept in places])):
                heads[row, : len(tree)] = tree
        return Tokens(
            ids=ids,
            mask=mask,
            unknown=[tuple(w for w in sentence if w and vocabulary(w) is None) for sentence in read],
            truncated=[len(sentence) > self.max_words for sentence in words],
            heads=heads,
        )


def _empty() -> Tokenizer:
    return Tokenizer(models.WordLevel({PADDING: 0, UNKNOWN: 1}, unk_token=UNKNOWN))


def _letters_tokenizer() -> Tokenizer:
    tokenizer = _empty()
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(LETTERS), "removed", invert=True)
    return tokenizer


def _new_tokenizer() -> Tokenizer:
    tokenizer = _empty()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("’", "'")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def split_words(tokenizer: Tokenizer, expression: str) -> list[str]:
    normal = tokenizer.normalizer.normalize_str(expression)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]


def _is_punctuation(word: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in word)
