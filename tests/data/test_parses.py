"""Dependency trees: kept with the table, contracted to what a network reads, and never missing without a word."""

import dataclasses
import importlib.util
import json
import logging
import pickle
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from refseg.cli import app
from refseg.data import parses
from refseg.data.parses import Parses, all_words, chain, contract, is_tree, know_trees, one_root, spacy_trees
from refseg.data.table import Row, read_table, write_table
from refseg.errors import RefsegError
from refseg.words import WordTokenizer

MAN = "man in the red shirt on the left"
TREE = (0, 0, 4, 4, 1, 0, 7, 5)
"""man ← in ← shirt ← the, red; man ← on ← left ← the."""


def row(tmp_path, expression=MAN, heads=TREE):
    return Row(tmp_path / "a.png", 1, 2, 3, expression, "06", heads=heads)


@pytest.fixture
def no_parser(monkeypatch):
    parses._load.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)


@pytest.fixture
def tokenizer():
    return WordTokenizer.from_expressions([MAN, "the dog behind it"], max_words=10)


@st.composite
def trees(draw):
    """Heads of any tree: words join one after another, in any order."""
    order = draw(st.permutations(range(draw(st.integers(1, 12)))))
    heads = [0] * len(order)
    for number, word in enumerate(order):
        heads[word] = order[draw(st.integers(0, max(number - 1, 0)))]
    return tuple(heads)


@given(trees())
def test_trees_are_told_from_what_is_none(heads):
    assert is_tree(heads)
    root = next(word for word, head in enumerate(heads) if head == word)
    for word in range(len(heads)):
        astray = list(heads)
        astray[word] = len(heads)
        assert not is_tree(astray)
        if word != root:
            two_roots = list(heads)
            two_roots[word] = word
            assert not is_tree(two_roots) and is_tree(one_root(two_roots))
    assert not is_tree(()) and not is_tree((1, 0)) and is_tree((0,))


@given(trees(), st.data())
def test_a_contracted_tree_keeps_who_stands_above_whom(heads, data):
    kept = sorted(data.draw(st.sets(st.integers(0, len(heads) - 1), min_size=1)))
    within = contract(heads, kept)
    assert is_tree(within) and len(within) == len(kept)

    def above(word):
        found = []
        while heads[word] != word:
            word = heads[word]
            found.append(word)
        return [w for w in found if w in kept]

    for number, word in enumerate(kept):
        if ancestors := above(word):
            assert kept[within[number]] == ancestors[0]


def test_the_heirs_of_a_lost_root():
    assert contract((1, 1, 1, 2), [0, 2, 3]) == (0, 0, 1)
    assert contract((1, 1, 1, 2), [0, 1, 2, 3]) == (1, 1, 1, 2)
    assert contract(TREE, []) == ()
    assert chain(4) == (0, 0, 1, 2) and chain(0) == ()


def test_a_tree_travels_with_its_row(tmp_path):
    rows = [row(tmp_path), row(tmp_path, "the dog", ())]
    write_table(tmp_path / "table.jsonl", rows)
    assert read_table(tmp_path / "table.jsonl") == rows
    first, second = map(json.loads, (tmp_path / "table.jsonl").read_text().splitlines())
    assert first["heads"] == list(TREE) and "heads" not in second


def test_a_tokenizer_gives_the_heads_of_the_words_that_are_read(tmp_path, tokenizer, no_parser):
    assert tokenizer([MAN]).heads is None
    tokenizer.parse = Parses()
    know_trees(tokenizer, [row(tmp_path)])
    tokens = tokenizer([MAN, "Man, in the red shirt on the left!", "the dog behind it"])
    assert tokens.heads.shape == tokens.ids.shape
    assert tokens.heads[0].tolist() == list(TREE)
    assert tokens.heads[1].tolist() == list(chain(8)), "another sentence, and punctuation is not read"
    assert tokens.heads[2].tolist() == [0, 0, 1, 2, 0, 0, 0, 0]
    tokenizer.max_words = 5
    assert tokenizer([MAN]).heads[0].tolist() == [0, 0, 4, 4, 1]


def test_unread_punctuation_does_not_break_a_tree(tmp_path, tokenizer, no_parser):
    sentence = "the dog, behind it"
    tokenizer.parse = Parses()
    tokenizer.parse.add([row(tmp_path, sentence, (1, 2, 2, 2, 3))])  # the comma is the root
    assert tokenizer([sentence]).heads.tolist() == [[1, 1, 1, 2]]
    assert tokenizer(["?!"]).heads.tolist() == [[0]]


def test_without_a_tree_there_is_a_chain_which_is_counted_and_said_once(tmp_path, tokenizer, no_parser, caplog):
    tokenizer.parse = Parses()
    broken = row(tmp_path, "the dog", (1, 0))
    short = row(tmp_path, "the red shirt", (0,))
    tokenizer.parse.add([row(tmp_path), broken, short])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert tokenizer([MAN, "the dog", "the red shirt"]).heads[1:, :3].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert tokenizer.parse.chains == 4
    (record,) = caplog.records
    assert record.message.startswith("'the dog' has no dependency tree (")
    assert "pip install 'refseg[parse]'" in record.message and "depends on the one before" in record.message


def test_a_parser_that_finds_no_tree_is_said_and_counted(tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(parses, "spacy_trees", lambda sentences: [None for _ in sentences])
    tokenizer.parse = Parses()
    with caplog.at_level(logging.WARNING):
        assert tokenizer(["the dog", "behind it"]).heads.tolist() == [[0, 0], [0, 0]]
    (record,) = caplog.records
    assert "'the dog' has no dependency tree (the parser finds none)" in record.message
    assert tokenizer.parse.chains == 2


def test_trees_reach_the_processes_that_prepare_batches(tmp_path, tokenizer, no_parser):
    tokenizer.parse = Parses()
    tokenizer.parse.add([row(tmp_path)])
    assert pickle.loads(pickle.dumps(tokenizer))([MAN]).heads.tolist() == [list(TREE)]


def test_other_tokenizers_are_left_alone(tmp_path, tokenizer):
    for other in (tokenizer, object()):
        know_trees(other, [row(tmp_path)])
    assert tokenizer.parse is None


def test_no_pipeline_is_an_error_with_a_cure(no_parser, monkeypatch):
    with pytest.raises(RefsegError, match=r"pip install 'refseg\[parse\]'"):
        spacy_trees([["dog"]])
    absent = types.ModuleType("spacy")
    absent.tokens = types.ModuleType("spacy.tokens")
    absent.tokens.Doc = object

    def load(*_, **__):
        raise OSError("[E050]")

    absent.load = load
    monkeypatch.setitem(sys.modules, "spacy", absent)
    monkeypatch.setitem(sys.modules, "spacy.tokens", absent.tokens)
    with pytest.raises(RefsegError, match="python -m spacy download en_core_web_sm"):
        spacy_trees([["dog"]])


def test_the_command_fills_the_table(tmp_path, monkeypatch):
    table = tmp_path / "table.jsonl"
    write_table(table, [row(tmp_path, MAN, ()), row(tmp_path, "the dog", ()), row(tmp_path, MAN, ())])
    asked = []

    def parser(sentences, name):
        asked.extend((name, sentence) for sentence in sentences)
        return [TREE if len(sentence) == len(TREE) else None for sentence in sentences]

    monkeypatch.setattr(parses, "spacy_trees", parser)
    result = CliRunner().invoke(app, ["data", "parse", str(table), "--parser", "mine"])
    assert result.exit_code == 0, result.output
    assert "3 rows, 1 of them without a tree" in result.output
    assert [read.heads for read in read_table(table)] == [TREE, (), TREE]
    assert asked == [("mine", all_words(MAN)), ("mine", all_words("the dog"))]


needs_spacy = pytest.mark.skipif(
    importlib.util.find_spec("spacy") is None or importlib.util.find_spec(parses.PARSER) is None,
    reason="spaCy or its pipeline en_core_web_sm is not installed (pip install 'refseg[parse]')",
)


@needs_spacy
def test_spacy_says_what_depends_on_what(tmp_path, tokenizer):
    parses._load.cache_clear()
    assert spacy_trees([all_words(MAN)]) == [TREE]
    several = all_words("woman holding an umbrella. she is on the left. the tall one")
    (heads,) = spacy_trees([several])
    assert is_tree(heads) and len(heads) == len(several)
    tokenizer.parse = Parses()
    assert tokenizer([MAN]).heads.tolist() == [list(TREE)] and tokenizer.parse.chains == 0
    assert dataclasses.replace(row(tmp_path), heads=heads).heads == heads
