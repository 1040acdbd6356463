"""Word vectors in GloVe's text format, and words that a trained network learns from them without any training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.errors import RefsegError
from refseg.models.interface import ReferringNetwork
from refseg.words import WordTokenizer, split_words

log = logging.getLogger(__name__)

ALIKE = 0.5
"""The least mean cosine, over the words that both know, between a network's vectors and those of a file."""


def vectors_of(file: Path, size: int, wanted: Callable[[str], bool], cure: str) -> dict[str, Tensor]:
    """The vectors of the wanted words from a text file with a word and `size` numbers per line.

    Raises RefsegError where the file cannot be read or is no such file, and `cure` for numbers that are not `size`.
    """
    vectors: dict[str, Tensor] = {}
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                word, *numbers = line.rstrip("\n").rsplit(" ", size)
                if len(numbers) != size:
                    raise RefsegError(f"{file}, line {number}: not a word and {size} numbers; {cure}")
                if wanted(word):
                    vectors[word] = torch.tensor([float(n) for n in numbers])
    except OSError as fault:
        raise RefsegError(f"word_vectors: {file} cannot be read; name a GloVe text file") from fault
    except ValueError as fault:
        raise fault if isinstance(fault, RefsegError) else RefsegError(f"{file} is not a GloVe file") from fault
    return vectors


def add_words(
    network: ReferringNetwork, tokenizer: WordTokenizer, file: Path, only: Collection[str] | None = None
) -> WordTokenizer:
    """Makes the words of a vector file known to a trained network, in place; returns the vocabulary with them.

    The file is the one from which the network's own words started. Words that it knows keep their vectors; `only`: the
    words to add, None for all. Words that the tokenizer would split are left out. Raises RefsegError as `vectors_of`
    does, and for a file of other vectors.
    """
    table = network.text_encoder.embedding.weight.data
    known = tokenizer.vocabulary

    def wanted(word: str) -> bool:
        new = only is None or word in only
        return word in known or (new and split_words(tokenizer.tokenizer, word) == [word])

    source = network.config.word_vectors or "the file that its training named as word_vectors"
    vectors = vectors_of(file, table.shape[1], wanted, f"give {source}")
    shared = [word for word in vectors if word in known]
    ours, theirs = table[[known[word] for word in shared]], [vectors[word] for word in shared]
    if not shared or F.cosine_similarity(ours, torch.stack(theirs), dim=1).mean() < ALIKE:
        raise RefsegError(f"the vectors of {file} are not those that the model learnt with; give {source}")
    longer = tokenizer.extended(word for word in vectors if word not in known)
    unknown = table[tokenizer.unknown_id].expand(len(longer), -1)
    rows = torch.cat([table, unknown[len(table) :]])
    for word, index in longer.vocabulary.items():
        if index >= len(known):
            rows[index] = vectors[word]
    weight = nn.Parameter(rows, requires_grad=network.text_encoder.embedding.weight.requires_grad)
    network.text_encoder.embedding.weight = weight
    network.text_encoder.embedding.num_embeddings = network.config.vocabulary = len(rows)
    log.info("%d words more from %s", len(longer) - len(known), file)
    return longer
