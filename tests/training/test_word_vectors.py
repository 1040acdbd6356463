import json

import pytest
import torch
import torch.nn.functional as F

from refseg.errors import RefsegError
from refseg.training.word_vectors import learn_vectors, read_sentences, read_vectors, start_words, vector_words
from refseg.words import WordTokenizer

VOCABULARY = {"<pad>": 0, "<unk>": 1, "dog": 2, "cat": 3}


def test_glove_file(tmp_path):
    file = tmp_path / "glove.txt"
    file.write_text("dog 1 -2.5 3e-1\n. . . 0 0 0\nzebra 7 8 9\ncat 4 5 6\n", encoding="utf-8")
    vectors = read_vectors(file, VOCABULARY, 3)
    assert {index: vector.tolist() for index, vector in vectors.items()} == {
        2: pytest.approx([1, -2.5, 0.3]),
        3: [4, 5, 6],
    }


def test_glove_faults(tmp_path):
    file = tmp_path / "glove.txt"
    file.write_text("dog 1 2 3\ncat 4 5\n")
    with pytest.raises(RefsegError, match=r"line 2: not a word and 3 numbers; set model\.word_size"):
        read_vectors(file, VOCABULARY, 3)
    file.write_text("dog 1 2 three\n")
    with pytest.raises(RefsegError, match="is not a GloVe file"):
        read_vectors(file, VOCABULARY, 3)
    for unreadable in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(RefsegError, match="cannot be read"):
            read_vectors(unreadable, VOCABULARY, 3)


def test_a_file_of_moderate_size_joins_the_vocabulary_whole(tmp_path, monkeypatch):
    file = tmp_path / "glove.txt"
    file.write_text("sofa 1 2\n. . . 0 0\nhot-dog 1 2\nDog 3 4\nsettee 1 2\n", encoding="utf-8")
    tokenizer = WordTokenizer.from_expressions(["the dog"])
    words = vector_words(file, tokenizer)
    assert words == ["sofa", ".", "settee"], "what the tokenizer splits or lowers is never looked up"
    monkeypatch.setattr("refseg.training.word_vectors.MODERATE", 4)
    assert vector_words(file, tokenizer) == []
    with pytest.raises(RefsegError, match="cannot be read"):
        vector_words(tmp_path / "absent.txt", tokenizer)


@pytest.mark.parametrize("unknown_vector", ["mean", "zero"])
def test_words_without_a_vector(tmp_path, unknown_vector):
    file = tmp_path / "glove.txt"
    file.write_text("dog 1 2\ncat 3 6\n<unk> 9 9\n")
    tokenizer = WordTokenizer.from_expressions(["dog cat quokka"])
    table = torch.full((len(tokenizer), 2), 7.0)
    start_words(table, file, tokenizer, unknown_vector=unknown_vector)
    words = tokenizer.vocabulary
    assert table[words["dog"]].tolist() == [1, 2] and table[words["cat"]].tolist() == [3, 6]
    if unknown_vector == "zero":
        assert table[words["<unk>"]].tolist() == table[words["quokka"]].tolist() == [0, 0]
    else:
        assert table[words["quokka"]].tolist() == [7, 7]
        assert table[words["<unk>"]].tolist() == [2, 4], "the mean over the words"


def test_a_trained_networks_words_keep_their_vectors(tmp_path):
    file = tmp_path / "glove.txt"
    file.write_text("dog 1 2\ncat 3 6\n")
    known = WordTokenizer.from_expressions(["dog"])
    tokenizer = known.extended(["cat quokka"])
    for unknown_vector, quokka in (("mean", 7), ("zero", 0)):
        table = torch.full((len(tokenizer), 2), 7.0)
        start_words(table, file, tokenizer, len(known), unknown_vector)
        assert table[: len(known)].eq(7).all()
        assert table[tokenizer.vocabulary["cat"]].tolist() == [3, 6]
        assert table[tokenizer.vocabulary["quokka"]].tolist() == [quokka, quokka]


def test_longer_vectors_than_wanted_are_no_words(tmp_path):
    file = tmp_path / "glove.txt"
    file.write_text("dog 1 2 3 4\ncat 5 6 7 8\n")
    with pytest.raises(RefsegError, match=r"model\.word_size"):
        read_vectors(file, VOCABULARY, 3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.txt", "the dog\na cup\n"),
        ("rows.jsonl", '{"expression": "the dog", "id": 1}\n\n{"expression": "a cup"}\n'),
        ("referit.json", json.dumps({"1_2": ["the dog"], "3_4": ["a cup"]})),
    ],
)
def test_sentences(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert list(read_sentences(tmp_path / name)) == ["the dog", "a cup"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("rows.jsonl", '{"text": "the dog"}'), ("rows.jsonl", "the dog"), ("referit.json", "[1, 2]")],
)
def test_files_without_sentences(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(RefsegError, match=r"holds no sentences .* give a \.txt, \.jsonl or ReferIt \.json"):
        list(read_sentences(tmp_path / name))
    with pytest.raises(RefsegError, match="holds no sentences"):
        list(read_sentences(tmp_path / "absent.txt"))


SENTENCES = [
    f"the {colour} {thing} {end}"
    for colour, things in (("red", ["shirt", "dress", "scarf"]), ("furry", ["dog", "cat", "horse"]))
    for thing in things
    for end in ("is worn" if thing in ("shirt", "dress", "scarf") else "runs off", "here")
] * 20


def test_words_of_the_same_company_lie_close():
    tokenizer = WordTokenizer.from_expressions(SENTENCES)
    vectors = learn_vectors(SENTENCES, tokenizer, size=8)
    assert vectors.shape == (len(tokenizer), 8)
    assert vectors.std().item() == pytest.approx(1, abs=1e-4)

    def close(one, other):
        index = tokenizer.vocabulary
        return F.cosine_similarity(vectors[index[one]], vectors[index[other]], dim=0).item()

    assert min(close("shirt", "dress"), close("dog", "horse")) > max(close("shirt", "dog"), close("scarf", "cat")) + 0.3


def test_company_is_kept_on_both_sides():
    tokenizer = WordTokenizer.from_expressions(SENTENCES)
    backwards = [" ".join(sentence.split()[::-1]) for sentence in SENTENCES]
    one, other = (learn_vectors(sentences, tokenizer, size=8) for sentences in (SENTENCES, backwards))
    torch.testing.assert_close(one @ one.T, other @ other.T, rtol=1e-3, atol=1e-3)


def test_learning_repeats_itself_and_leaves_chance_alone():
    tokenizer = WordTokenizer.from_expressions(SENTENCES)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = learn_vectors(SENTENCES, tokenizer, size=8)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(learn_vectors(iter(SENTENCES), tokenizer, size=8), first)


def test_a_vocabulary_smaller_than_the_vectors():
    tokenizer = WordTokenizer.from_expressions(["dog"])
    vectors = learn_vectors(["dog"], tokenizer, size=8)
    assert vectors.shape == (3, 8) and vectors.isfinite().all()
