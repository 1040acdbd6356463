import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from refseg.errors import RefsegError
from refseg.words import FREQUENT, WordTokenizer, split_words

SENTENCES = ["the red bag on the left", "a man's blue cup, broken", "the dog"]


@pytest.fixture(scope="module")
def tokenizer():
    return WordTokenizer.from_expressions(SENTENCES)


def ids(tokenizer, expression):
    tokens = tokenizer([expression])
    return tokens.ids[0][tokens.mask[0]].tolist()


def test_one_id_a_word_and_zero_for_padding_alone(tokenizer):
    tokens = tokenizer(SENTENCES)
    assert tokens.mask.sum(axis=1).tolist() == [6, 8, 2]  # a man ' s blue cup , broken
    assert tokens.ids.shape == tokens.mask.shape == (3, 8)
    assert ((tokens.ids == 0) == ~tokens.mask).all()
    assert tokens.ids[0, 0] == tokens.ids[0, 4] == tokens.ids[2, 0]
    assert tokenizer.vocabulary["<pad>"] == 0
    assert sorted(tokenizer.vocabulary.values()) == list(range(len(tokenizer)))


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_becomes_known_ids(text):
    tokenizer = WordTokenizer.from_expressions(SENTENCES)
    tokens = tokenizer([text, "the dog"])
    assert ((tokens.ids > 0) == tokens.mask).all()
    assert tokens.ids.max() < len(tokenizer)
    assert tokens.mask.any(axis=1).all()


@pytest.mark.parametrize(
    "written",
    ["The RED Bag", "the red bag!", "the; red -- bag?", "  the\tred\n bag ", "ｔｈｅ red bag", "«the» red… bag"],
)
def test_spelling_that_means_the_same(tokenizer, written):
    assert ids(tokenizer, written) == ids(tokenizer, "the red bag")
    assert tokenizer([written]).unknown == [()]


def test_typographic_apostrophe(tokenizer):
    assert ids(tokenizer, "a man’s cup") == ids(tokenizer, "a man's cup")
    assert tokenizer(["a man’s cup"]).unknown == [()]


def test_known_punctuation_is_a_word(tokenizer):
    assert ids(tokenizer, "cup, dog") != ids(tokenizer, "cup dog")


def test_unknown_words_are_listed_and_kept(tokenizer):
    tokens = tokenizer(["the green dog", "the dog", "zebra Giraffe"])
    assert tokens.unknown == [("green",), (), ("zebra", "giraffe")]
    assert ids(tokenizer, "the green dog")[1] == tokenizer.unknown_id
    assert tokens.mask.sum(axis=1).tolist() == [3, 2, 2]


@pytest.mark.parametrize("nothing", ["", "   ", "?!", "…"])
def test_a_sentence_without_words_is_one_unknown_word(tokenizer, nothing):
    assert ids(tokenizer, nothing) == [tokenizer.unknown_id]
    assert tokenizer([nothing]).unknown == [()]


def test_no_sentences(tokenizer):
    assert tokenizer([]).ids.shape == (0, 1)


def test_words_past_the_twenty_fifth_are_dropped(tokenizer):
    tokens = tokenizer(["dog " * 25, "dog " * 26, "dog " * 25 + "zebra"])
    assert tokens.ids.shape == (3, 25)
    assert tokens.truncated == [False, True, True]
    assert tokens.unknown[2] == ()
    short = WordTokenizer(tokenizer.tokenizer, max_words=2)(["the dog", "the dog left"])
    assert short.ids.shape == (2, 2) and short.truncated == [False, True]


def test_rare_words_of_other_sentences_are_typing_errors():
    others = ["zebra"] * FREQUENT + ["zebar"] * (FREQUENT - 1) + ["dog"]
    vocabulary = WordTokenizer.from_expressions(["dog", "hapax"], others).vocabulary
    assert set(vocabulary) == {"<pad>", "<unk>", "dog", "hapax", "zebra"}


def test_the_vocabulary_does_not_depend_on_order():
    assert WordTokenizer.from_expressions(SENTENCES).vocabulary == (
        WordTokenizer.from_expressions(SENTENCES[::-1]).vocabulary
    )


def test_saved_and_read(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "new")
    read = WordTokenizer.from_pretrained(tmp_path / "new")
    general = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert read.vocabulary == tokenizer.vocabulary
    for sentence in [*SENTENCES, "The man’s zebra, left"]:
        assert ids(read, sentence) == ids(tokenizer, sentence) == general(sentence)["input_ids"]
    assert general.pad_token_id == 0
    assert general.model_max_length == 25


def test_missing_and_damaged_files(tokenizer, tmp_path):
    with pytest.raises(RefsegError, match=r"lacks its vocabulary tokenizer\.json"):
        WordTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole[: len(whole) // 2], encoding="utf-8")
    with pytest.raises(RefsegError, match="copy the checkpoint again"):
        WordTokenizer.from_pretrained(tmp_path)
    foreign = json.loads(whole)
    foreign["model"]["vocab"] = {"<unk>": 0, "dog": 1}
    file.write_text(json.dumps(foreign), encoding="utf-8")
    with pytest.raises(RefsegError, match="not a refseg vocabulary"):
        WordTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("The 2nd man's red_bag, left-most!", ["the", "man", "s", "left", "most"]),
        ("3 people", ["people"]),
        ("Ünï x1 1x b", ["ünï", "b"]),
        ("²a ½b c", ["c"]),
        ("?! 42", []),
    ],
)
def test_words_of_letters_alone(expression, words):
    """Against what the released code does: split at what no word has, keep what is made of letters."""
    tokenizer = WordTokenizer.from_expressions([expression], letters=True)
    assert split_words(tokenizer.tokenizer, expression) == words
    assert words == [word for word in re.split(r"\W+", expression.lower()) if word.isalpha()]
    assert set(tokenizer.vocabulary) == {"<pad>", "<unk>", *words}
    tokens = tokenizer([expression])
    read = [tokenizer.tokenizer.id_to_token(number) for number in tokens.ids[0]]
    assert read == (words or ["<unk>"]), "no word at all is one that nobody knows"
    assert tokens.mask.all() and tokens.unknown == [()]


def test_a_larger_vocabulary_reads_as_the_smaller_one_did(tmp_path):
    tokenizer = WordTokenizer.from_expressions(["the 2nd bag"], letters=True)
    tokenizer.save_pretrained(tmp_path)
    larger = WordTokenizer.from_pretrained(tmp_path).extended(["a 3rd cup, here"])
    assert tokenizer.vocabulary.items() <= larger.vocabulary.items()
    assert set(larger.vocabulary) - set(tokenizer.vocabulary) == {"a", "cup", "here"}
    assert larger(["the 2nd cup"]).ids.shape == (1, 2)
