"""What the networks with 1×1 convolutions share: raw maps, the places of cells, MUTAN, and TensorFlow's LSTM."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config

from refseg.models.parts.lateral import OnGrid, build_raw_encoder, coordinates, with_coordinates
from refseg.models.parts.lstm import ForgetLSTM, ForgetLSTMEncoder
from refseg.models.parts.mutan import Mutan


def test_a_cell_knows_its_edges_its_middle_and_its_size():
    places = coordinates(torch.zeros(3, 5, 2, 4))
    assert places.shape == (3, 8, 2, 4)
    assert places[0, :, 1, 3].tolist() == [0.5, 0.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.5]
    assert places[2, :, 0, 0].tolist() == [-1.0, -1.0, -0.5, 0.0, -0.75, -0.5, 0.25, 0.5]
    level = torch.rand(3, 5, 2, 4)
    assert torch.equal(with_coordinates(level), torch.cat([level, places], dim=1))


def test_a_map_of_the_grids_side_is_left_as_it_is():
    level = torch.rand(1, 2, 4, 4)
    assert OnGrid()(level, 4) is level
    assert torch.allclose(OnGrid()(level, 2), F.avg_pool2d(level, 2))
    assert OnGrid()(level, 8).shape == (1, 2, 8, 8)


def test_the_raw_encoder_gives_the_backbones_maps():
    encoder = build_raw_encoder(tiny_config()).eval()
    images = torch.rand(2, 3, 64, 64)
    maps = encoder.backbone((images - encoder.mean) / encoder.std)
    for level, own, channels in zip(encoder(images), maps, encoder.backbone.channels, strict=True):
        assert level.shape == (2, channels, 4, 4)
        assert own.shape[-1] != 4 or torch.equal(level, own)
    assert all(level.shape[-2:] == (6, 6) for level in encoder(images, 6))


def test_mutan_is_its_equation():
    torch.manual_seed(0)
    meet = Mutan(3, 5, 4, heads=2).double()
    level, sentence = torch.randn(2, 3, 2, 2).double(), torch.randn(2, 5).double()
    result = meet(level, sentence)
    seen, said = meet.of_places(with_coordinates(level)).tanh(), meet.of_sentence(sentence).tanh()[:, :, None, None]
    joint = (seen[:, :4] * said[:, :4] + seen[:, 4:] * said[:, 4:]).tanh()
    torch.testing.assert_close(result, joint / joint.norm(dim=1, keepdim=True))
    with torch.device("meta"):
        assert sum(weight.numel() for weight in Mutan(1000, 1000, 1000).parameters()) == 10_050_000


def test_the_lstm_is_tensorflows():
    """Gates i, f, j and o with one bias each, and σ(f + 1)."""
    torch.manual_seed(0)
    lstm = ForgetLSTM(3, 2).double()
    torch.nn.init.normal_(lstm.bias_ih_l0)
    words = torch.randn(1, 4, 3).double()
    hidden = cell = torch.zeros(2).double()
    for word, expected in zip(words[0], lstm(words)[0][0], strict=True):
        i, f, j, o = (lstm.weight_ih_l0 @ word + lstm.weight_hh_l0 @ hidden + lstm.bias_ih_l0).split(2)
        cell = torch.sigmoid(f + 1) * cell + torch.sigmoid(i) * j.tanh()
        hidden = torch.sigmoid(o) * cell.tanh()
        torch.testing.assert_close(expected, hidden)
    assert [name for name, weight in lstm.named_parameters() if not weight.requires_grad] == ["bias_hh_l0"]


@pytest.mark.parametrize("freeze", [True, False])
def test_word_vectors_start_small_and_padding_at_zero(freeze):
    encoder = ForgetLSTMEncoder(50, 6, 4, 0.0, freeze=freeze)
    vectors = encoder.embedding.weight
    assert (vectors[0] == 0).all() and vectors[1:].abs().min() > 0 and vectors.abs().max() <= 0.08
    assert vectors.requires_grad is not freeze
    with torch.device("meta"):
        lstm = ForgetLSTMEncoder(2, 1000, 1000, 0.0, freeze=False).lstm
    assert sum(weight.numel() for weight in lstm.parameters() if weight.requires_grad) == 8_004_000
