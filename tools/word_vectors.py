"""Writes the vectors that the words of the shipped model start from, in GloVe's text format.

    python tools/word_vectors.py all-MiniLM-L6-v2 sentences/words.txt --out words.vec
    python tools/word_vectors.py all-MiniLM-L6-v2 sentences/words.txt --more sentences/more-words.txt --out words.vec
    python tools/word_vectors.py all-MiniLM-L6-v2 sentences/words.txt --sentences mine.jsonl --out words.vec

The first argument is the folder of a sentence-transformers checkpoint, such as all-MiniLM-L6-v2 (Apache-2.0). Nothing
is downloaded. Each word is encoded as a sentence of its own. From the vectors their mean is subtracted, in which
frequent words count more, and the rest is projected on its leading components, each scaled towards equal variance.
A recipe reads the file as `word_vectors`.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from refseg.errors import RefsegError, first_line
from refseg.files import whole
from refseg.training.word_vectors import read_sentences
from refseg.words import WordTokenizer, split_words

SIZE = 192
"""Numbers of a vector; of all-MiniLM's 384 components, these hold most of the variance."""
WHITENING = 0.7
"""0 leaves the components as they are, 1 gives all of them the same variance."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path, help="the folder of a sentence-transformers checkpoint")
    parser.add_argument("words", type=Path, help="a word and how often it is used per line, as in sentences/words.txt")
    parser.add_argument("--sentences", type=Path, nargs="*", default=[], help="files whose words join: .txt or .jsonl")
    parser.add_argument(
        "--more", type=Path, help="further words, each on a line with words that mean nearly the same; see read_more"
    )
    parser.add_argument("--size", type=int, default=SIZE, help=f"numbers of a vector, by default {SIZE}")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    options = parser.parse_args()
    try:
        counts = read_words(options.words, options.sentences)
        near = read_more(options.more)
        words = [*counts, *(word for word in near if word not in counts)]
        vectors = project(encode(options.encoder, words), list(counts.values()), options.size)
        write_vectors(options.out, words, lean(vectors, words, near))
    except RefsegError as fault:
        parser.exit(2, f"word_vectors: {fault}\n")
    print(f"{options.out}: {len(words)} words of {options.size} numbers")


def read_words(words: Path, sentences: Iterable[Path] = ()) -> dict[str, int]:
    """The words in alphabetical order, and how often each is used: those of the list, and those of sentences.

    Sentences are cut into words as the network's tokenizer cuts them. What has other signs than letters and digits is
    left out. Raises RefsegError for a line that is not a word and a number.
    """
    try:
        lines = [line.split() for line in words.read_text(encoding="utf-8").splitlines()]
        counts = Counter({word: int(count) for word, count in lines})
    except (OSError, ValueError) as fault:
        raise RefsegError(f"{words} is no list of words ({fault}); write a word and a count per line") from fault
    tokenizer = WordTokenizer.from_expressions([]).tokenizer
    for file in sentences:
        counts.update(word for text in read_sentences(file) for word in split_words(tokenizer, text))
    return {word: counts[word] for word in sorted(counts) if re.fullmatch(r"[a-z0-9'&]{1,19}", word)}


def read_more(words: Path | None) -> dict[str, list[str]]:
    """Each word of a file with the words behind it on its line, which mean nearly the same; there may be none.

    Raises RefsegError where the file cannot be read.
    """
    try:
        lines = words.read_text(encoding="utf-8").splitlines() if words else []
    except (OSError, ValueError) as fault:
        raise RefsegError(f"{words} is no list of words ({fault}); write a word per line") from fault
    return {line.split()[0]: line.split()[1:] for line in lines if line.strip()}


def lean(vectors: Tensor, words: Sequence[str], near: dict[str, list[str]]) -> Tensor:
    """Moves each word of `near` half of the way to the mean of the words that it lists; its length stays.

    An encoder of sentences spells rare words out and takes "settee" for a kind of "set". Unknown neighbours count
    nothing.
    """
    place = {word: number for number, word in enumerate(words)}
    moved = vectors.clone()
    for word, known in near.items():
        if neighbours := [place[other] for other in known if other in place]:
            vector = vectors[place[word]]
            moved[place[word]] = F.normalize(vector + vectors[neighbours].mean(dim=0), dim=0) * vector.norm()
    return moved


@torch.inference_mode()
def encode(folder: Path, words: Sequence[str]) -> Tensor:
    """Each word's vector of length 1, (words, width): the mean of the encoder's last layer over the word's pieces.

    Raises RefsegError where the folder holds no encoder.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoder: Any = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    except (OSError, ValueError) as fault:
        raise RefsegError(f"{folder} cannot be read ({first_line(fault)}); give a checkpoint's folder") from fault
    vectors = []
    for start in range(0, len(words), 256):
        pieces = tokenizer(words[start : start + 256], return_tensors="pt", padding=True)
        hidden = encoder(**pieces).last_hidden_state  # (B, T, width)
        real = pieces["attention_mask"].unsqueeze(-1)
        vectors.append(F.normalize((hidden * real).sum(dim=1) / real.sum(dim=1), dim=1))
    return torch.cat(vectors)


def project(vectors: Tensor, counts: Sequence[int], size: int) -> Tensor:
    """vectors (words, width) → (words, size), of unit variance over the numbers of the counted words.

    The first words are counted and shape the projection; the words after them are only projected. A word's weight in
    mean and covariance grows with the logarithm of its count. Raises RefsegError where there are fewer components than
    `size`.
    """
    counted = vectors[: len(counts)]
    if size > min(counted.shape):
        raise RefsegError(f"{len(counts)} words of {vectors.shape[1]} numbers have no {size} components; lower --size")
    weight = (torch.tensor(counts, dtype=torch.float32) + 1).log() + 1
    weight = (weight / weight.sum()).unsqueeze(1)
    mean = (counted * weight).sum(dim=0)
    centred = counted - mean
    variances, components = torch.linalg.eigh((centred * weight).T @ centred)
    leading = variances.argsort(descending=True)[:size]
    projected = (vectors - mean) @ components[:, leading] / variances[leading].sqrt() ** WHITENING
    return projected / projected[: len(counts)].std()


def write_vectors(path: Path, words: Sequence[str], vectors: Tensor) -> None:
    """A word and its numbers per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for word, vector in zip(words, vectors.tolist(), strict=True):
            file.write(f"{word} {' '.join(f'{number:.4f}' for number in vector)}\n")


if __name__ == "__main__":
    main()
