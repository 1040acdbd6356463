"""Words that a trained network understands by a vector file alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config

import refseg
from refseg.engines.torch import TorchEngine
from refseg.errors import RefsegError
from refseg.models.reading import read_start
from refseg.models.shnet import SHNet
from refseg.models.vectors import add_words
from refseg.words import WordTokenizer

EXPRESSIONS = ["the red bag", "a blue cup"]
NEW = {"crimson": "red", "mug": "cup", "sofa": ""}
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and the file that its words came from: "crimson" is there as "red", "mug" as "cup"."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = WordTokenizer.from_expressions(EXPRESSIONS)
    torch.manual_seed(0)
    network = SHNet(tiny_config(vocabulary=len(tokenizer), freeze_words=True, word_vectors="words.vec"))
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    table = network.text_encoder.embedding.weight
    vectors = {word: table[index] for word, index in tokenizer.vocabulary.items() if index > 1}
    vectors |= {new: vectors[old] if old else torch.ones(table.shape[1]) for new, old in NEW.items()}
    vectors |= {"Cup": -vectors["cup"], "two-part": vectors["cup"]}
    lines = (f"{word} {' '.join(map(str, vector.tolist()))}\n" for word, vector in vectors.items())
    (folder / "words.vec").write_text("".join(lines), encoding="utf-8")
    return folder, folder / "words.vec"


def test_a_word_of_the_file_means_what_its_vector_says(trained: tuple[Path, Path]) -> None:
    folder, file = trained
    plain, more = refseg.load(folder, engine="torch"), refseg.load(folder, word_vectors=file)
    assert isinstance(more.engine, TorchEngine)
    asked = ["the red bag", "a blue cup", "the crimson bag", "a blue mug", "a sofa"]
    before, after = (s.mask_logits(s.encode(PHOTO), asked) for s in (plain, more))
    assert np.array_equal(after[:2], before[:2]), "what was understood keeps its answer"
    np.testing.assert_allclose(after[2:4], after[:2], rtol=1e-5, atol=1e-5)
    assert (np.abs(after[2:] - before[2:]).max(axis=(1, 2, 3)) > 1e-3).all()
    assert [answer.unknown_words for answer in plain(PHOTO, asked)] == [(), (), ("crimson",), ("mug",), ("sofa",)]
    assert all(answer.unknown_words == () for answer in more(PHOTO, asked))
    assert more(PHOTO, "a zebra").unknown_words == ("zebra",)


def test_only_what_is_asked_for_and_can_be_read_is_added(trained: tuple[Path, Path]) -> None:
    folder, file = trained
    network, tokenizer = read_start(folder)
    before = network.text_encoder.embedding.weight.clone()
    longer = add_words(network, tokenizer, file, only=["mug", "zebra", "two-part"])
    assert set(longer.vocabulary) - set(tokenizer.vocabulary) == {"mug"}
    assert tokenizer.vocabulary.items() <= longer.vocabulary.items()
    table = network.text_encoder.embedding.weight
    assert torch.equal(table[:-1], before) and torch.equal(table[-1], before[tokenizer.vocabulary["cup"]])
    assert network.config.vocabulary == len(longer) == len(table)
    everything = add_words(network, longer, file)
    assert set(everything.vocabulary) - set(longer.vocabulary) == {"crimson", "sofa"}


def test_a_network_with_new_words_is_saved_with_them(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = trained
    network, tokenizer = read_start(folder)
    longer = add_words(network, tokenizer, file)
    network.save_pretrained(tmp_path)
    longer.save_pretrained(tmp_path)
    more, saved = refseg.load(folder, word_vectors=file), refseg.load(tmp_path, engine="torch")
    answers = [s.mask_logits(s.encode(PHOTO), ["a crimson sofa"]) for s in (more, saved)]
    np.testing.assert_allclose(*answers, rtol=1e-5, atol=1e-6)


def test_vectors_of_another_kind_are_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = trained
    (tmp_path / "few.vec").write_text("mug 1 2 3\n")
    with pytest.raises(RefsegError, match=r"few\.vec, line 1: not a word and 8 numbers; give words\.vec"):
        refseg.load(folder, word_vectors=tmp_path / "few.vec")
    draw = np.random.default_rng(1)
    names = [line.split()[0] for line in file.read_text().splitlines()]
    other = "".join(f"{word} {' '.join(map(str, draw.normal(size=8)))}\n" for word in names)
    (tmp_path / "other.vec").write_text(other)
    with pytest.raises(RefsegError, match=r"other\.vec are not those that the model learnt with; give words\.vec"):
        refseg.load(folder, word_vectors=tmp_path / "other.vec")
    (tmp_path / "strange.vec").write_text("mug 1 2 3 4 5 6 7 8\n")
    with pytest.raises(RefsegError, match="not those that the model learnt with"):
        refseg.load(folder, word_vectors=tmp_path / "strange.vec")
    with pytest.raises(RefsegError, match="cannot be read"):
        refseg.load(folder, word_vectors=tmp_path / "absent.vec")
    for engine in ("onnx", "openvino"):
        with pytest.raises(RefsegError, match="leave engine out, or word_vectors"):
            refseg.load(folder, engine=engine, word_vectors=file)


def test_a_model_of_before_says_whose_file_it_wants(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = trained
    old = Path(shutil.copytree(folder, tmp_path / "old"))
    config = json.loads((old / "config.json").read_text())
    del config["word_vectors"]
    (old / "config.json").write_text(json.dumps(config))
    assert refseg.load(old, word_vectors=file)(PHOTO, "mug").unknown_words == ()
    (tmp_path / "few.vec").write_text("mug 1 2 3\n")
    with pytest.raises(RefsegError, match="give the file that its training named as word_vectors"):
        refseg.load(old, word_vectors=tmp_path / "few.vec")
