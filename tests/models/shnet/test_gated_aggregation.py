"""MGATE, TGFE and GBFM in both forms: cases computed by hand with gates that are wide open or shut."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from refseg.models.brinet import Entry
from refseg.models.cmpc import Exchange
from refseg.models.parts.text_encoder import average_word
from refseg.models.shnet.gated_aggregation import GBFM, MGATE, TGFE, GBFMOfBRINet, SharedExchange, TGFEOfCMPC

B, C, T = 3, 4, 5
MGATEOfCMSA = partial(MGATE, learnt=True)
CMPCS = partial(TGFEOfCMPC, words=C, grid=3)
KINDS = [MGATE, MGATEOfCMSA, TGFE, CMPCS, GBFM, GBFMOfBRINet]
MASK = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [False] * 5])


@pytest.fixture
def fused():
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(B, C, 4, 3, generator=draw).double(), torch.randn(B, T, C, generator=draw).double())
        for _ in range(3)
    ]


def build(kind):
    torch.manual_seed(0)
    return kind(C).double()


def shut(gate, value=-1e3):
    """A gate that is shut whatever comes, or open where `value` is large."""
    torch.nn.init.zeros_(gate.weight)
    torch.nn.init.constant_(gate.bias, value)


@pytest.mark.parametrize("kind", KINDS)
def test_three_levels_become_one_and_every_weight_learns(kind, fused):
    module = build(kind)
    joint = module(fused, MASK)
    assert joint.shape == (B, C, 4, 3)
    (joint * torch.randn_like(joint)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all(), name
        rows = parameter.grad.flatten(1) if parameter.ndim > 1 else parameter.grad[:, None]
        # A rectifier may keep a channel silent on twelve places, so not every row needs a gradient.
        assert (rows.abs().sum(dim=1) > 0).float().mean() > 0.4, name


@pytest.mark.parametrize("kind", KINDS)
def test_every_level_matters(kind, fused):
    module = build(kind)
    joint = module(fused, MASK)
    for i in range(3):
        changed = [(pixels + (i == j), words) for j, (pixels, words) in enumerate(fused)]
        assert (module(changed, MASK) - joint).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_depends_on_neither_padding_nor_company(kind, fused):
    module = build(kind)
    together = module(fused, MASK)
    garbage = [(pixels, torch.where(MASK.unsqueeze(-1), words, 1e6)) for pixels, words in fused]
    torch.testing.assert_close(module(garbage, MASK), together)
    alone = module([(pixels[1:2], words[1:2, :2]) for pixels, words in fused], MASK[1:2, :2])
    torch.testing.assert_close(alone, together[1:2])


def test_mgate_with_shut_reset_gates_adds_the_levels(fused):
    mgate = build(MGATE)
    for gate in mgate.gates:
        gate.bias.data[2 * C :] = -1e3
    torch.testing.assert_close(mgate(fused, MASK), sum(pixels for pixels, _ in fused))


def test_mgate_with_open_gates_exchanges_the_levels(fused):
    """o_i = tanh(γ x_j + (1 − γ) x_k): with γ = 1 level 0 takes level 1, and the two others take level 0."""
    mgate = build(MGATEOfCMSA)
    for gate in mgate.gates:
        gate.bias.data[C:] = 1e3
    mgate.share.data = torch.ones(3).double()
    (first, _), (second, _), _ = fused
    torch.testing.assert_close(mgate(fused, MASK), second.tanh() + 2 * first.tanh())


def test_mgate_with_shut_memory_gates_takes_nothing_from_the_others(fused):
    mgate = build(MGATE)
    for gate in mgate.gates:
        gate.bias.data[C : 2 * C] = -1e3
        gate.bias.data[2 * C :] = 1e3
    candidates = [
        F.conv2d(pixels, gate.weight[:C], gate.bias[:C], padding=1).tanh()
        for gate, (pixels, _) in zip(mgate.gates, fused, strict=True)
    ]
    torch.testing.assert_close(mgate(fused, MASK), sum(candidates))


@pytest.mark.parametrize("kind", [MGATE, MGATEOfCMSA])
def test_the_gates_of_mgate_start_open_and_its_shares_even(kind, fused):
    """Without weights c is 0 and m and r are σ(1): o = r tanh(m (x_j + x_k) / 2) + (1 − r) x."""
    mgate = build(kind)
    for gate in mgate.gates:
        shut(gate, 0.0)
    a, b, c = (pixels for pixels, _ in fused)
    g = torch.sigmoid(torch.tensor(1.0)).double()
    exchanged = sum((g * (first + second) / 2).tanh() for first, second in ((b, c), (a, c), (a, b)))
    torch.testing.assert_close(mgate(fused, MASK), g * exchanged + (1 - g) * (a + b + c))


def test_an_exchange_with_a_shut_gate_leaves_the_level_alone(fused):
    (pixels, words), *others = fused
    exchange = Exchange(C, C).double()
    for gate in exchange.opens:
        shut(gate)
    torch.testing.assert_close(
        exchange(pixels, [o for o, _ in others], average_word(words, MASK)), F.normalize(pixels, dim=1)
    )


def test_an_exchange_with_an_open_gate_adds_the_others(fused):
    (pixels, words), *others = fused
    exchange = Exchange(C, C).double()
    for gate, value in zip(exchange.opens, exchange.values, strict=True):
        shut(gate, 1e3)
        value.weight.data = torch.eye(C)[:, :, None, None].double()
        value.bias.data.zero_()
    result = exchange(pixels, [o for o, _ in others], average_word(words, MASK))
    torch.testing.assert_close(result, F.normalize(pixels + sum(o.relu() for o, _ in others), dim=1))


def test_an_exchange_pools_where_pixels_agree_with_the_sentence():
    """One place is the sentence itself, the others oppose it: its channel 0 opens the gate, theirs would shut it."""
    exchange = Exchange(2, 2).double()
    for linear, weight in (
        (exchange.key, torch.eye(2)),
        (exchange.query, torch.eye(2)),
        (exchange.context, torch.eye(2, 4)),
        *((gate, torch.tensor([[20.0, 0.0], [20.0, 0.0]])) for gate in exchange.opens),
        *((value, torch.eye(2)[:, :, None, None]) for value in exchange.values),
    ):
        linear.weight.data = weight.double()
        linear.bias.data.zero_()
    sentence = torch.tensor([[30.0, 0.0]]).double()
    pixels = torch.tensor([[[[1.0, -1.0, -1.0]], [[0.0, 0.0, 0.0]]]]).double()  # (1, 2, 1, 3)
    others = [torch.full_like(pixels, 2.0), torch.full_like(pixels, 3.0)]
    expected = F.normalize(pixels + sum(others), dim=1)
    torch.testing.assert_close(exchange(pixels, others, sentence), expected)
    against = exchange(pixels, others, -sentence)
    torch.testing.assert_close(against, F.normalize(pixels, dim=1))


def test_an_exchange_is_its_equation(fused):
    (pixels, words), (first, _), (second, _) = fused
    exchange = Exchange(C, C).double()
    sentences = average_word(words, MASK)
    result = exchange(pixels, [first, second], sentences)
    for b, s in enumerate(sentences):
        places = pixels[b].flatten(1).T  # (hw, C)
        share = (exchange.key(places) @ exchange.query(s) / C**0.5).softmax(dim=0)
        pooled = sum(weight * place for weight, place in zip(share, places, strict=True))
        context = exchange.context(torch.cat([pooled, s]))
        gates = [gate(context / context.norm()).sigmoid() for gate in exchange.opens]
        for row, column in ((0, 0), (3, 2), (1, 1)):
            taken = [
                value.weight[:, :, 0, 0] @ x[b, :, row, column] + value.bias
                for value, x in zip(exchange.values, (first, second), strict=True)
            ]
            expected = pixels[b, :, row, column] + sum(g * t.relu() for g, t in zip(gates, taken, strict=True))
            torch.testing.assert_close(result[b, :, row, column], expected / expected.norm())


def test_who_listens_to_the_words(fused):
    other = [(pixels, words.flip(2)) for pixels, words in fused]
    for kind in KINDS:
        module = build(kind)
        differs = not torch.allclose(module(fused, MASK)[:2], module(other, MASK)[:2])
        assert differs == (kind in (TGFE, CMPCS, GBFM))


def test_the_shared_exchange_is_its_equation(fused):
    (pixels, words), (first, _), (second, _) = fused
    exchange = SharedExchange(C, C).double()
    sentences = average_word(words, MASK)
    result = exchange(pixels, [first, second], sentences)
    value = exchange.value.weight[:, :, 0, 0]
    for b, s in enumerate(sentences):
        places = pixels[b].flatten(1).T  # (hw, C)
        keys = places @ exchange.key.weight[:, :, 0, 0].T + exchange.key.bias
        share = (keys.relu() @ exchange.query(s).relu()).softmax(dim=0)
        context = exchange.context(torch.cat([share @ places, s])).relu()
        gate = exchange.open(context / context.norm()).sigmoid()
        for row, column in ((0, 0), (3, 2), (1, 1)):
            expected = pixels[b, :, row, column]
            for x in (first, second):
                expected = expected + gate * (value @ x[b, :, row, column] + exchange.value.bias).relu()
            torch.testing.assert_close(result[b, :, row, column], expected / expected.norm())


def test_the_authors_tgfe_is_one_exchange_twice_and_a_sum(fused):
    tgfe = build(TGFE)
    a, b, c = (average_word(words, MASK) for _, words in fused)
    x, y, z = (pixels for pixels, _ in fused)
    for _ in range(2):
        x, y, z = tgfe.exchange(x, [y, z], a), tgfe.exchange(y, [z, x], b), tgfe.exchange(z, [x, y], c)
    torch.testing.assert_close(tgfe(fused, MASK), x + y + z)


def test_the_authors_gbfm_is_its_gates_written_out(fused):
    gbfm = build(GBFM)

    def gate(x, y):
        joint = F.conv2d(torch.cat([x, y], dim=1), gbfm.enter.meet.weight, gbfm.enter.meet.bias).relu()
        return F.conv2d(joint, gbfm.enter.gate.weight, gbfm.enter.gate.bias, padding=1).sigmoid() * x + y

    mixed = []
    for pixels, words in fused:
        tiled = average_word(words, MASK)[:, :, None, None].expand(-1, -1, 4, 3)
        mixed.append(F.conv2d(torch.cat([pixels, tiled], dim=1), gbfm.mix.weight, gbfm.mix.bias).relu())
    x1, x2, x3 = mixed
    left, right = gate(gate(x3, x2), gate(x2, x1)), gate(gate(x1, x2), gate(x2, x3))
    expected = F.conv2d(left + right, gbfm.join.weight, gbfm.join.bias, padding=1)
    torch.testing.assert_close(gbfm(fused, MASK), expected)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (MGATE, 21_238_272),
        (MGATEOfCMSA, 21_238_275),
        (TGFE, 1_575_424),
        (GBFM, 5_769_216),
        (GBFMOfBRINet, 19_667_456),
    ],
)
def test_their_sizes_in_table_4(kind, count):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in kind(512).parameters()) == count


def test_an_exchange_has_the_size_of_cmpcs():
    """At CMPC's own widths: 500 channels a pixel, 1,000 a sentence."""
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Exchange(500, 1000).parameters()) == 2_503_500


@pytest.mark.parametrize("kind", [TGFE, partial(TGFEOfCMPC, grid=3), GBFM])
def test_pixels_may_be_wider_than_words(kind):
    wide = [(torch.randn(2, 2 * C, 3, 3), torch.randn(2, T, C)) for _ in range(3)]
    assert kind(2 * C, C)(wide, MASK[:2]).shape == (2, 2 * C, 3, 3)


def test_the_tgfe_of_cmpc_is_two_rounds_then_the_convlstm(fused):
    tgfe = build(CMPCS)
    pixels = [level for level, _ in fused]
    for first, second, third in (tgfe.exchanges[:3], tgfe.exchanges[3:]):
        a, b, c = (average_word(words, MASK) for _, words in fused)
        pixels = [
            first(pixels[0], [pixels[1], pixels[2]], a),
            second(pixels[1], [pixels[0], pixels[2]], b),
            third(pixels[2], [pixels[0], pixels[1]], c),
        ]
    assert len(tgfe.exchanges) == 6
    torch.testing.assert_close(tgfe(fused, MASK), tgfe.join(pixels))


def test_an_entry_with_a_shut_gate_leaves_the_target_alone(fused):
    (source, _), (target, _), _ = fused
    entry = Entry(C).double()
    shut(entry.gate)
    torch.testing.assert_close(entry(source, target), target)
    shut(entry.gate, 1e3)
    torch.testing.assert_close(entry(source, target), source + target)


@pytest.mark.parametrize(("way", "weights"), [("bottom_up", (2, 2, 1)), ("top_down", (1, 2, 2))])
def test_gbfm_walks_both_ways(way, weights, fused):
    """With open gates on one way, its end is start + 2·middle + end; the other's, shut, is its last level alone."""
    gbfm = build(GBFMOfBRINet)
    for name in ("bottom_up", "top_down"):
        for entry in getattr(gbfm.fuse, name):
            shut(entry.gate, 1e3 if name == way else -1e3)
    join = gbfm.fuse.join
    join.weight.data.zero_()
    join.weight.data[:, :, 1, 1] = torch.eye(C)
    join.bias.data.zero_()
    expected = sum(weight * pixels for weight, (pixels, _) in zip(weights, fused, strict=True)).relu()
    torch.testing.assert_close(gbfm(fused, MASK), expected)
