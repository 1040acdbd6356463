import torch

from refseg.models.parts.gru import TwoWayGRU


def test_it_is_pytorchs_two_way_gru_on_sentences_without_padding():
    torch.manual_seed(0)
    ours, theirs = TwoWayGRU(3, 8).double(), torch.nn.GRU(3, 4, batch_first=True, bidirectional=True).double()
    state = dict(ours.forwards.state_dict())
    state |= {f"{name}_reverse": weight for name, weight in ours.backwards.state_dict().items()}
    theirs.load_state_dict(state)
    words = torch.randn(2, 5, 3).double()
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    read = ours(words, mask)
    torch.testing.assert_close(read[:1], theirs(words[:1])[0])
    torch.testing.assert_close(read[1:, :2], theirs(words[1:, :2])[0])
    assert not read[1, 2:].any()
    garbage = torch.where(mask.unsqueeze(2), words, 1e3)
    assert torch.equal(ours(garbage, mask), read)
