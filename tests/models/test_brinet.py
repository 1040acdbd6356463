"""BRINet against its equations, written out place by place."""

import pytest
import torch
from torch import nn

from refseg.errors import RefsegError
from refseg.models.brinet import BRINet, BRINetConfig, GatedFusion, Relations
from refseg.models.parts.lateral import coordinates

B, C, T, H, W = 2, 4, 3, 3, 3
MASK = torch.tensor([[True] * 3, [True, False, False]])
SMALL = {"width": C, "relation_width": 5, "aspp_width": 3, "grid": H, "max_words": 6, "image_size": 64, "word_size": 4}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def relations(**changes):
    torch.manual_seed(0)
    module = Relations(BRINetConfig(**{**SMALL, **changes})).double()
    nn.init.normal_(module.query)
    return module


@pytest.fixture
def seen():
    """A level, words, and a sentence."""
    return random(B, C, H, W), random(B, T, C, seed=1) * MASK.unsqueeze(2), random(B, C, seed=2)


def of_place(conv, x, row, column):
    return conv.weight[:, :, 0, 0] @ x[:, row, column] + conv.bias


def test_parameters_are_those_of_the_released_code():
    with torch.device("meta"):
        network = BRINet(BRINetConfig.published())
    learned = [(name, p.numel()) for name, p in network.named_parameters() if p.requires_grad]
    assert not any(".backbone." in name for name, _ in learned)
    assert sum(number for _, number in learned) == 198_680_148
    of_words = sum(number for name, number in learned if name.startswith("text_encoder."))
    assert of_words == 12_112_000 + 8_004_000
    assert sum(p.numel() for p in network.relations[0].parameters()) == 33_320_048
    assert sum(p.numel() for p in network.fusion.parameters()) == 75_013_000


@pytest.mark.parametrize("weighs_places", [False, True])
def test_relations_are_their_equations(weighs_places, seen):
    module = relations(weighs_places=weighs_places)
    level, words, sentence = seen
    result = module(level, words, sentence, MASK)
    for b in range(B):
        tiled = sentence[b][:, None, None].expand(-1, H, W)
        x = torch.cat([tiled, level[b], coordinates(level)[b]])
        places = [(row, column) for row in range(H) for column in range(W)]
        columns = torch.cat([words[b, : MASK[b].sum()], torch.zeros(6 - int(MASK[b].sum()), C).double()])
        heard, keys, values = [], [], []
        for place in places:
            shares = (columns @ of_place(module.seek_words, x, *place).relu()).softmax(dim=0)
            assert len(shares) == 6, "the words that a sentence lacks take their share"
            heard.append(shares @ columns)
            key = of_place(module.key, x, *place).relu()
            keys.append((module.key_of_words.weight @ heard[-1] + module.key_of_places.weight @ key).tanh())
            values.append(of_place(module.value, x, *place).relu())
        share = torch.stack([(torch.stack(keys) @ query).softmax(dim=0) for query in module.query])
        joint = torch.zeros(C, H, W).double()
        for n, place in enumerate(places):
            weights = share[n] if weighs_places else share[:, n]
            received = sum(weight * value for weight, value in zip(weights, values, strict=True))
            met = module.join.weight[:, :, 0, 0] @ torch.cat([received, heard[n]]) + module.join.bias
            joint[:, place[0], place[1]] = met.relu() + of_place(module.keep, x, *place).relu()
        torch.testing.assert_close(result[b], module.aspp(joint[None])[0])


def test_only_the_mean_gives_the_same_value_back(seen):
    """Where all places are alike, a weighed mean is what each of them is, and the code's sum is not."""
    level, words, sentence = seen
    taken = {}
    for weighs_places in (True, False):
        module = relations(weighs_places=weighs_places)
        module.join.register_forward_hook(
            lambda _, inputs, __, key=weighs_places: taken.__setitem__(key, inputs[0][:, :C])
        )
        module.value.weight.data[:, -8:] = 0  # no coordinates
        module(torch.ones_like(level), words, sentence, MASK)
    assert taken[True].std(dim=(2, 3)).max() < 1e-12 < 1e-3 < taken[False].std(dim=(2, 3)).max()
    torch.testing.assert_close(taken[True].mean(dim=(2, 3)), taken[False].mean(dim=(2, 3)))


def test_queries_belong_to_places_and_stretch_to_other_grids(seen):
    module = relations()
    assert module.queries(H, W) is module.query
    stretched = module.queries(2 * H, 2 * W)
    assert stretched.shape == (4 * H * W, 5)
    assert torch.equal(stretched[0], module.query[0]) and torch.equal(stretched[-1], module.query[-1])


def test_no_words_and_all_words_that_are_read(seen):
    level, _, sentence = seen
    module = relations(max_words=T)
    words = random(B, T, C, seed=1)
    for mask in (torch.zeros(B, T, dtype=torch.bool), torch.ones(B, T, dtype=torch.bool)):
        answer = module(level, words, sentence, mask)
        assert answer.isfinite().all()
    shares = module.words_for_places(random(B, 9, C), words, torch.zeros(B, T, dtype=torch.bool))
    assert (shares == 0).all()


@pytest.mark.parametrize(("way", "weights"), [("bottom_up", (2, 2, 1)), ("top_down", (1, 2, 2))])
def test_levels_enter_each_other_both_ways(way, weights):
    """With open gates on one way, its end is start + 2·middle + end; the other's, shut, is its last level alone."""
    fusion = GatedFusion(C).double()
    for name in ("bottom_up", "top_down"):
        for entry in getattr(fusion, name):
            nn.init.zeros_(entry.gate.weight)
            nn.init.constant_(entry.gate.bias, 1e3 if name == way else -1e3)
    nn.init.zeros_(fusion.join.weight), nn.init.zeros_(fusion.join.bias)
    fusion.join.weight.data[:, :, 1, 1] = torch.eye(C)
    levels = [random(B, C, H, W, seed=seed) for seed in range(3)]
    expected = sum(weight * level for weight, level in zip(weights, levels, strict=True)).relu()
    torch.testing.assert_close(fusion(levels), expected)


def test_rates_that_are_none_are_refused():
    for rates in ([], [1, 0], [1, 2.5]):
        with pytest.raises(RefsegError, match="aspp_rates"):
            BRINetConfig(aspp_rates=rates)
