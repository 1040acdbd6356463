"""Dependency trees: on which word each word of a sentence depends. A table has them, or spaCy finds them.

`refseg data parse` writes them into a table, so that neither training nor evaluation needs a parser.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from refseg.data.table import Row
from refseg.errors import RefsegError
from refseg.words import WordTokenizer, split_words

log = logging.getLogger(__name__)

PARSER = "en_core_web_sm"
"""spaCy's small English pipeline."""
Heads = tuple[int, ...]
"""The place of each word's head among all words of the sentence; the root is its own head."""


class Parses:
    """The trees of sentences: those that tables have, then those that spaCy finds, then chains."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, ...], Heads] = {}
        """Trees by the words of their sentences."""
        self.chains = 0
        """How many sentences were answered with a chain, for want of a tree."""

    def add(self, rows: Iterable[Row]) -> None:
        """Learns the trees of the rows that have one. One that does not fit its sentence is passed over."""
        for row in rows:
            if row.heads:
                self.add_tree(row.expression, row.heads)

    def add_tree(self, expression: str, heads: Heads) -> None:
        words = all_words(expression)
        if len(heads) == len(words) and is_tree(heads):
            self.known[words] = heads

    def __call__(self, sentences: Sequence[Sequence[str]], kept: Sequence[Sequence[int]]) -> list[Heads]:
        """The trees of sentences, each contracted to its words at the places that are `kept`, in rising order.

        A sentence without a tree becomes a chain. The first of them is logged, all are counted in `chains`.
        """
        trees = {tuple(words): self.known.get(tuple(words)) for words in sentences}
        missing = [words for words, heads in trees.items() if heads is None]
        why = "the parser finds none"
        try:
            trees.update(zip(missing, spacy_trees(missing) if missing else [], strict=True))
        except RefsegError as fault:
            why = str(fault)
        contracted = []
        for words, places in zip(sentences, kept, strict=True):
            heads = trees[tuple(words)]
            if heads is None:
                if not self.chains:
                    log.warning(
                        "%r has no dependency tree (%s); where there is none, each word depends on the one before",
                        " ".join(words),
                        why,
                    )
                self.chains += 1
                heads = chain(len(words))
            contracted.append(contract(heads, places))
        return contracted


def know_trees(tokenizer: Any, rows: Iterable[Row]) -> None:
    """Gives the trees of the rows to the tokenizer of a network that reads trees."""
    if isinstance(parses := getattr(tokenizer, "parse", None), Parses):
        parses.add(rows)


def all_words(expression: str) -> tuple[str, ...]:
    """The words of a sentence, as every vocabulary splits them; those that a vocabulary lacks are among them."""
    return tuple(split_words(_tokenizer(), expression))


@cache
def _tokenizer() -> Any:
    return WordTokenizer.from_expressions(()).tokenizer


def spacy_trees(sentences: Iterable[Sequence[str]], parser: str = PARSER) -> list[Heads | None]:
    """What spaCy says of sentences that are split already; None where that is no tree.

    `parser`: the name or the folder of a pipeline. Raises RefsegError where spaCy or the pipeline is missing.
    """
    nlp, document = _load(parser)
    parsed = nlp.pipe(document(nlp.vocab, words=list(words)) for words in sentences)
    trees = (one_root([word.head.i for word in sentence]) for sentence in parsed)
    return [heads if is_tree(heads) else None for heads in trees]


@cache
def _load(parser: str) -> tuple[Any, Any]:
    """A pipeline, and the class of what it reads."""
    try:
        import spacy
        from spacy.tokens import Doc
    except ImportError as fault:
        raise RefsegError("dependency trees need spaCy; pip install 'refseg[parse]'") from fault
    try:
        return spacy.load(parser, exclude=["ner", "lemmatizer"]), Doc
    except OSError as fault:
        raise RefsegError(f"spaCy has no pipeline {parser}; python -m spacy download {PARSER}") from fault


def one_root(heads: Sequence[int]) -> Heads:
    """One tree of several, as of a text that spaCy takes for several sentences: later roots depend on the first."""
    first = next((word for word, head in enumerate(heads) if head == word), 0)
    return tuple(first if head == word else head for word, head in enumerate(heads))


def is_tree(heads: Sequence[int]) -> bool:
    """Whether every word leads to one root."""
    if not all(0 <= head < len(heads) for head in heads):
        return False
    ends: Sequence[int] = range(len(heads))
    for _ in heads:
        ends = [heads[word] for word in ends]
    return len(set(ends)) == 1 and heads[ends[0]] == ends[0]


def chain(count: int) -> Heads:
    """The tree in which each word depends on the one before; the first word is the root."""
    return tuple(max(word - 1, 0) for word in range(count))


def contract(heads: Sequence[int], kept: Sequence[int]) -> Heads:
    """The tree of the words at the places `kept`, counted among these: who lost their head follow the head's head.

    Where the root itself is lost, the first of its heirs replaces it.
    """
    place = {word: number for number, word in enumerate(kept)}

    def heir(word: int) -> int:
        head = heads[word]
        while head not in place and heads[head] != head:
            head = heads[head]
        return head

    return one_root([place.get(heir(word), number) for number, word in enumerate(kept)])
