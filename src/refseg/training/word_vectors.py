"""Word vectors from which the embedding starts: of a GloVe file, or learnt from sentences."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from refseg.errors import RefsegError
from refseg.models.vectors import vectors_of
from refseg.words import WordTokenizer, split_words

log = logging.getLogger(__name__)

WINDOW = 4
"""The largest distance, in words, at which two words are neighbours."""
MODERATE = 50_000
"""The longest vector file, in words, that joins the vocabulary completely."""


def vector_words(file: Path, tokenizer: WordTokenizer) -> list[str]:
    """The words of a GloVe text file that join the vocabulary although no sentence of the training has them.

    These are all words of a file of at most `MODERATE` words. A network with `freeze_words: true` then also understands
    words that it was never trained on, because their vectors stay in place among the others. A larger file gives none:
    GloVe's own 2.2 million words would make up most of the checkpoint. Only words of the sentences get vectors then.
    Words that the tokenizer would split are left out.
    """
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            words = [line.partition(" ")[0] for line in islice(lines, MODERATE + 1)]
    except OSError as fault:
        raise RefsegError(f"word_vectors: {file} cannot be read; name a GloVe text file") from fault
    if len(words) > MODERATE:
        return []
    return [word for word in words if split_words(tokenizer.tokenizer, word) == [word]]


def start_words(
    embedding: Tensor, file: Path, tokenizer: WordTokenizer, known: int = 0, unknown_vector: str = "mean"
) -> None:
    """Gives words their vectors from a GloVe text file, in place. See `Recipe.unknown_vector` for the others.

    embedding is (vocabulary, size). The first `known` words, which belong to a trained network, keep their vectors.
    """
    vectors = read_vectors(file, tokenizer.vocabulary, embedding.shape[1])
    log.info("word vectors for %d of %d words", len(vectors), len(tokenizer))
    if unknown_vector == "zero":
        embedding[known:] = 0
    for index, vector in vectors.items():
        if index >= known:
            embedding[index] = vector
    if not known:
        words = [vector for index, vector in vectors.items() if index > tokenizer.unknown_id] or [embedding[0]]
        embedding[tokenizer.unknown_id] = torch.stack(words).mean(dim=0) if unknown_vector == "mean" else 0


def read_vectors(file: Path, vocabulary: dict[str, int], size: int) -> dict[int, Tensor]:
    """Vectors of the known words from a GloVe text file, which has a word and `size` numbers per line."""
    vectors = vectors_of(file, size, vocabulary.__contains__, cure="set model.word_size")
    if not vectors:
        raise RefsegError(f"{file} has vectors of {size} numbers for none of the words; set model.word_size")
    return {vocabulary[word]: vector for word, vector in vectors.items()}


def read_sentences(file: Path) -> Iterator[str]:
    """The sentences of a text file (one per line), of JSON lines with `expression`, or of ReferIt's query files."""
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            yield from (sentence for sentences in json.loads(text).values() for sentence in sentences)
        elif file.suffix == ".jsonl":
            yield from (json.loads(line)["expression"] for line in text.splitlines() if line)
        else:
            yield from text.splitlines()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as fault:
        raise RefsegError(f"{file} holds no sentences ({fault}); give a .txt, .jsonl or ReferIt .json") from fault


def learn_vectors(sentences: Iterable[str], tokenizer: WordTokenizer, size: int) -> Tensor:
    """Vectors (vocabulary, size) of unit variance. Words with similar neighbours get similar vectors.

    They are the leading singular vectors of the positive pointwise mutual information within a window of four words,
    with the context counts smoothed by the power 0.75 (Levy, Goldberg and Dagan 2015).
    """
    counts = torch.zeros(len(tokenizer), len(tokenizer))
    batch: list[str] = []
    for sentence in sentences:
        batch.append(sentence)
        if len(batch) == 4096:
            _count(counts, tokenizer, batch)
            batch = []
    _count(counts, tokenizer, batch)
    words = counts.sum(dim=1, keepdim=True).clamp(min=1)
    contexts = counts.sum(dim=0, keepdim=True) ** 0.75
    association = (counts * contexts.sum() / (words * contexts.clamp(min=1e-9))).clamp(min=1).log()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, strength, _ = torch.svd_lowrank(association, q=min(size, len(tokenizer)), niter=4)
    vectors = torch.zeros(len(tokenizer), size)
    vectors[:, : left.shape[1]] = left * strength.sqrt()
    return vectors / vectors.std().clamp(min=1e-9)


def _count(counts: Tensor, tokenizer: WordTokenizer, sentences: Sequence[str]) -> None:
    if not sentences:
        return
    ids = torch.as_tensor(tokenizer(sentences).ids)
    for distance in range(1, min(WINDOW, ids.shape[1] - 1) + 1):
        left, right = ids[:, :-distance].flatten(), ids[:, distance:].flatten()
        real = (left > tokenizer.unknown_id) & (right > tokenizer.unknown_id)
        pair = (left[real], right[real])
        once = torch.ones(len(pair[0]))
        counts.index_put_(pair, once, accumulate=True)
        counts.index_put_(pair[::-1], once, accumulate=True)
