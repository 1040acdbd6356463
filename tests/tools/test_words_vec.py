"""From words and an encoder to a file that a recipe starts its words from."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from refseg.data.expressions.lexicon import NAMES
from refseg.errors import RefsegError
from refseg.training.word_vectors import read_vectors
from refseg.words import WordTokenizer, split_words

ROOT = Path(__file__).parents[2]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "aeinorst")]
WORDS = {"sofa": 5, "dog": 900, "left": 2000, "cat": 0, "tin": 3, "ant": 1, "rat": 0, "one": 7, "test": 2}


@pytest.fixture(scope="module")
def word_vectors(tool):
    return tool("word_vectors")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A random BERT of one layer, as sentence-transformers saves one."""
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(PIECES), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{word} {count}\n" for word, count in WORDS.items()))
    return path


def test_the_file_is_what_a_recipe_reads(word_vectors, encoder, words, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new/words.vec"
    monkeypatch.setattr(sys, "argv", ["word_vectors", str(encoder), str(words), "--size", "4", "--out", str(out)])
    word_vectors.main()
    assert "9 words of 4 numbers" in capsys.readouterr().out
    vectors = torch.stack(list(read_vectors(out, {word: n for n, word in enumerate(WORDS)}, 4).values()))
    assert vectors.shape == (9, 4) and vectors.std().item() == pytest.approx(1, abs=1e-3)


def test_a_word_is_the_mean_of_its_pieces_whatever_stands_beside_it(word_vectors, encoder):
    together = word_vectors.encode(encoder, list(WORDS))
    torch.testing.assert_close(together.norm(dim=1), torch.ones(9))
    for number, word in enumerate(WORDS):
        torch.testing.assert_close(word_vectors.encode(encoder, [word])[0], together[number])
    hidden = BertModel.from_pretrained(encoder)(
        **BertTokenizerFast.from_pretrained(encoder)("tin", return_tensors="pt")
    ).last_hidden_state[0]
    torch.testing.assert_close(together[list(WORDS).index("tin")], hidden.mean(0) / hidden.mean(0).norm())


def test_components_lose_the_weighted_mean_and_most_of_their_differences(word_vectors):
    torch.manual_seed(0)
    vectors, counts = torch.randn(500, 6) * torch.tensor([9.0, 5, 3, 1, 0.5, 0.1]) + 4, torch.arange(500)
    projected = word_vectors.project(vectors, counts.tolist(), 3)
    weight = (counts.float() + 1).log() + 1
    weight /= weight.sum()
    torch.testing.assert_close((projected * weight.unsqueeze(1)).sum(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    spread = (projected.square() * weight.unsqueeze(1)).sum(dim=0).sqrt()
    # Standard deviations of 9, 5 and 3 to the power of 0.3.
    torch.testing.assert_close(spread / spread[0], torch.tensor([1, 5 / 9, 3 / 9]) ** 0.3, rtol=0.05, atol=0)


def test_words_of_sentences_join_and_count(word_vectors, words, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"expression": "The DOG\'s tin, café"}\n{"expression": "dog 7"}\n')
    counts = word_vectors.read_words(words, [tmp_path / "mine.jsonl"])
    assert list(counts) == sorted(counts)
    assert counts == WORDS | {"dog": 902, "tin": 4, "the": 1, "'": 1, "s": 1, "7": 1}


def test_faults_name_the_cure(word_vectors, encoder, words, tmp_path):
    words.write_text("sofa\n")
    with pytest.raises(RefsegError, match="write a word and a count per line"):
        word_vectors.read_words(words)
    with pytest.raises(RefsegError, match="give a checkpoint's folder"):
        word_vectors.encode(tmp_path, ["sofa"])
    with pytest.raises(RefsegError, match="2 words of 8 numbers have no 3 components; lower --size"):
        word_vectors.project(torch.rand(2, 8), [1, 1], 3)


def test_the_committed_list_has_every_word_to_learn_from(word_vectors):
    """Those of the typed sentences and of the generator's names, as far as they are plain."""
    listed = word_vectors.read_words(ROOT / "sentences/words.txt")
    assert len(listed) == len((ROOT / "sentences/words.txt").read_text().splitlines()) > 5000
    tokenizer = WordTokenizer.from_expressions([]).tokenizer
    texts = [NAMES]
    for name in ("photos-coco-train", "photos-coco-things-train"):
        lines = (ROOT / f"sentences/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        texts += [json.loads(line)["expression"] for line in lines]
    used = {word for text in texts for word in split_words(tokenizer, text)}
    assert {word for word in used if word.isascii() and word.isalnum()} <= listed.keys()


def test_further_words_leave_the_others_as_they_are_and_lean_on_their_neighbours(
    word_vectors, encoder, words, tmp_path
):
    more = tmp_path / "more.txt"
    more.write_text("settee sofa unheard\n\ncat dog\nnear\n")
    near = word_vectors.read_more(more)
    assert near == {"settee": ["sofa", "unheard"], "cat": ["dog"], "near": []}
    listed = [*WORDS, "settee", "near"]
    vectors = word_vectors.project(word_vectors.encode(encoder, listed), list(WORDS.values()), 4)
    alone = word_vectors.project(word_vectors.encode(encoder, list(WORDS)), list(WORDS.values()), 4)
    torch.testing.assert_close(vectors[: len(WORDS)], alone, atol=1e-4, rtol=1e-4)
    moved = word_vectors.lean(vectors, listed, near)
    changed = {word for word, old, new in zip(listed, vectors, moved, strict=True) if not torch.equal(old, new)}
    assert changed == {"settee", "cat"}

    def likeness(table, word, other):
        return torch.cosine_similarity(table[listed.index(word)], table[listed.index(other)], dim=0)

    assert likeness(moved, "settee", "sofa") > likeness(vectors, "settee", "sofa")
    torch.testing.assert_close(moved.norm(dim=1), vectors.norm(dim=1))
