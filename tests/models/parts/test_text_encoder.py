import pytest
import torch

from refseg.errors import RefsegError
from refseg.models.parts.text_encoder import TextEncoder

IDS = torch.tensor([[3, 4, 5, 0], [6, 2, 0, 0]])
MASK = IDS > 0


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return TextEncoder(vocabulary=9, embedding=5, width=6, dropout=0.5, freeze=False).eval()


def test_words_past_the_end_are_zero(encoder):
    words = encoder(IDS, MASK)
    assert words.shape == (2, 4, 6)
    assert (words[~MASK] == 0).all()
    assert (words[MASK].abs().sum(dim=1) > 0).all()


def test_a_word_is_the_state_of_the_lstm_there(encoder):
    words = encoder(IDS, MASK)
    for row, length in enumerate(MASK.sum(dim=1)):
        _, (hidden, _) = encoder.lstm(encoder.embedding(IDS[row : row + 1, :length]))
        torch.testing.assert_close(words[row, length - 1], hidden[0, 0])


def test_a_word_knows_those_before_it_and_none_behind_it(encoder):
    words = encoder(IDS, MASK)
    other_last, other_first = IDS.clone(), IDS.clone()
    other_last[0, 2], other_first[0, 0] = 7, 7
    torch.testing.assert_close(encoder(other_last, MASK)[0, :2], words[0, :2])
    assert not torch.allclose(encoder(other_first, MASK)[0, 1:3], words[0, 1:3])


def test_dropout_is_for_training_alone(encoder):
    assert torch.equal(encoder(IDS, MASK), encoder(IDS, MASK))
    encoder.train()
    assert not torch.equal(encoder(IDS, MASK), encoder(IDS, MASK))


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_words_get_no_gradient_and_padding_never_does(freeze):
    encoder = TextEncoder(vocabulary=9, embedding=5, width=6, dropout=0.0, freeze=freeze)
    encoder(IDS, MASK).square().sum().backward()
    gradient = encoder.embedding.weight.grad
    if freeze:
        assert gradient is None
    else:
        moved = gradient.abs().sum(dim=1) > 0
        assert moved.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]


def test_one_hot_words_are_read_by_the_lstm_itself():
    """The LSTM's input weights are then the words' vectors: those of a table, whose vectors are the rows of one."""
    one_hot = TextEncoder(vocabulary=9, embedding=None, width=6, dropout=0.5)
    table = TextEncoder(vocabulary=9, embedding=9, width=6, dropout=0.0)
    table.embedding.weight.data = torch.eye(9)
    table.embedding.weight.data[0] = 0
    table.lstm.load_state_dict(one_hot.lstm.state_dict())
    assert torch.equal(one_hot(IDS, MASK), table(IDS, MASK)), "and no word is dropped"
    assert {name.partition(".")[0] for name in one_hot.state_dict()} == {"lstm"}
    one_hot(IDS, MASK).square().sum().backward()
    read = one_hot.lstm.weight_ih_l0.grad.abs().sum(dim=0) > 0
    assert read.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]


def test_one_hot_words_have_no_vectors():
    encoder = TextEncoder(vocabulary=9, embedding=None, width=6, dropout=0.0)
    with pytest.raises(RefsegError, match="leave out one_hot, or word_vectors, sentences and start"):
        _ = encoder.embedding.weight
