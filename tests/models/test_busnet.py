"""BUSNet: what its docstring decides, on trees made by hand."""

import pytest
import torch
import torch.nn.functional as F

from refseg.models.busnet import DIRECTIONS, BottomUpShift, BUSNet, BUSNetConfig, Message, Refinement, Shift
from refseg.models.interface import TokenBatch

C, H, W, REACH = 8, 9, 9, 3
MAN = torch.tensor([[0, 0, 4, 4, 1]])
"""man ← holding ← umbrella ← a, red."""


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def dot(row, column):
    region = torch.zeros(H, W).double()
    region[row, column] = 1
    return region


def always(shift, direction):
    """Lets every word choose the same filter."""
    torch.nn.init.zeros_(shift.choose.weight)
    shift.choose.bias.data = torch.full((9,), -1e3).double()
    shift.choose.bias.data[DIRECTIONS.index(direction)] = 0


@pytest.fixture
def shift():
    torch.manual_seed(0)
    return BottomUpShift(C, REACH, 6).double()


def test_the_published_size():
    with torch.device("meta"):
        net = BUSNet(BUSNetConfig.published())
        levels = net.encode(torch.empty(1, 3, 320, 320))
    assert [tuple(level.shape) for level in levels] == [(1, 512, 40, 40)] * 3
    assert net.reasoning[0].shift.bank.shape == (9, 15, 15) and net.config.parses


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_fresh_filter_moves_a_region_its_way(direction):
    shift = Shift(C, REACH).double()
    always(shift, direction)
    mix = shift.mix(random(1, 1, C), torch.zeros(1, 1, dtype=torch.long))
    moved = shift(dot(4, 4)[None, None], mix)[0, 0].detach()
    rows, columns = torch.meshgrid(torch.arange(H).double(), torch.arange(W).double(), indexing="ij")
    assert float(moved.sum()) == pytest.approx(1, abs=1e-3)
    centre = ((moved * rows).sum().item() - 4, (moved * columns).sum().item() - 4)
    assert centre == pytest.approx(direction, abs=0.05)


def test_a_filter_is_chosen_by_both_words():
    shift = Shift(C, REACH).double()
    words, heads = random(2, 3, C), torch.tensor([[1, 1, 1], [0, 0, 1]])
    regions = random(2, 3, H, W, seed=1)
    moved = shift(regions, shift.mix(words, heads))
    bank = shift.bank.flatten(1).softmax(dim=1)
    torch.testing.assert_close(bank.sum(dim=1), torch.ones(9).double())
    for b, word, head in ((0, 0, 1), (0, 2, 1), (1, 2, 1), (1, 0, 0)):
        mix = shift.choose(torch.cat([words[b, word], words[b, head]])).softmax(dim=0)
        mixed = (mix @ bank).view(1, 1, 2 * REACH + 1, 2 * REACH + 1)
        alone = F.conv2d(regions[b, word][None, None], mixed, padding=REACH)[0, 0]
        torch.testing.assert_close(moved[b, word], alone)


def test_regions_are_told_upwards_the_deepest_first(shift):
    """Of a chain man ← holding ← umbrella, with filters that stay: the man is where all three are."""
    always(shift.shift, (0, 0))
    words, mask = random(1, 5, C), torch.ones(1, 5, dtype=torch.bool)
    regions = random(1, 5, H, W).sigmoid()
    man, holding, umbrella, a, red = (regions[0, word] for word in (0, 1, 4, 2, 3))
    mix = shift.shift.mix(words, MAN)

    def moved(region):
        return shift.shift(region.expand(1, 5, H, W), mix)[0, 0]

    def scaled(region):
        return region / region.max()

    umbrella = scaled(umbrella * (moved(a) + moved(red)) / 2)
    holding = scaled(holding * moved(umbrella))
    man = scaled(man * moved(holding))
    heard = shift.reason(regions, words, MAN, mask)[0]
    for word, expected in ((0, man), (1, holding), (4, umbrella), (2, a), (3, red)):
        torch.testing.assert_close(heard[word], expected)


def test_of_two_alike_the_one_that_stands_right_is_found(shift):
    """Two cups and one plate; the filter says that what is meant lies to the left of the plate."""
    always(shift.shift, (0, -1))
    words, mask, heads = random(1, 2, C), torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0, 0]])
    cups, plate = dot(4, 3) + dot(4, 8), dot(4, 4)
    heard = shift.reason(torch.stack([cups, plate])[None], words, heads, mask)[0, 0]
    assert heard[4, 3] == 1 and heard[4, 8] < 1e-3


def test_a_level_is_marked_by_the_region_of_the_root(shift):
    level, words, sentence = random(1, C, H, W), random(1, 3, C, seed=1), random(1, C, seed=2)
    heads, mask = torch.tensor([[1, 1, 1]]), torch.ones(1, 3, dtype=torch.bool)
    seen = []
    shift.join.register_forward_hook(lambda *call: seen.append(call[-1].relu()))
    marked = shift(level, words, sentence, heads, mask)
    region = shift.reason(shift.regions(seen[0], words), words, heads, mask)[:, 1:2]
    torch.testing.assert_close(marked, seen[0] * (1 + region))
    assert float(region.detach().max()) == pytest.approx(1)


def test_a_word_alone_keeps_its_region(shift):
    regions, words = random(1, 1, H, W).sigmoid(), random(1, 1, C)
    one = torch.ones(1, 1, dtype=torch.bool)
    assert torch.equal(shift.reason(regions, words, torch.zeros(1, 1, dtype=torch.long), one), regions)


def test_regions_that_rule_each_other_out_leave_nothing(shift):
    always(shift.shift, (0, 0))
    regions = torch.stack([dot(0, 0), dot(8, 8)])[None].requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    heard = shift.reason(regions, random(1, 2, C), torch.tensor([[0, 0]]), mask)
    heard.sum().backward()
    assert heard[0, 0].max() < 1e-3 and regions.grad.isfinite().all()


def test_the_tree_decides_and_a_chain_stands_in_for_it():
    torch.manual_seed(0)
    sizes = {"width": 8, "reach": 2, "grid": 4, "image_size": 64, "word_size": 4}
    net = BUSNet(BUSNetConfig(**sizes)).double().eval()
    photograph = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    ids = torch.tensor([[3, 4, 5, 6], [7, 0, 0, 0]])
    with torch.no_grad():
        given, chain, none = (
            net(TokenBatch(ids, ids > 0, heads), images=photograph).mask_logits
            for heads in (torch.tensor([[2, 2, 2, 1], [0] * 4]), torch.tensor([[0, 0, 1, 2], [0] * 4]), None)
        )
    assert torch.equal(chain, none)
    assert (given - chain)[0].abs().max() > 1e-6
    torch.testing.assert_close(given[1], chain[1])


def test_messages_go_both_ways():
    refinement = Refinement(C).double()
    levels, sentence = [random(2, C, H, W, seed=seed) for seed in range(3)], random(2, C, seed=3)
    (down, end_down), (up, end_up) = refinement.down, refinement.up
    shallow = end_down(down(levels[2], levels[1], sentence), levels[0], sentence)
    deep = end_up(up(levels[0], levels[1], sentence), levels[2], sentence)
    expected = refinement.join(torch.cat([shallow, deep], dim=1)).relu()
    torch.testing.assert_close(refinement(levels, sentence), expected)


def test_a_message_is_gated_per_place_and_per_channel():
    message = Message(C).double()
    source, target, sentence = random(2, C, H, W), random(2, C, H, W, seed=1), random(2, C, seed=2)
    told = message(source, target, sentence) - target
    channels = message.channels(torch.cat([source.mean(dim=(2, 3)), sentence], dim=1)).sigmoid()
    expected = torch.sigmoid(message.gate(source)) * message.value(source) * channels[:, :, None, None]
    torch.testing.assert_close(told, expected)
    message.gate.bias.data.fill_(-1e3), torch.nn.init.zeros_(message.gate.weight)
    torch.testing.assert_close(message(source, target, sentence), target)
