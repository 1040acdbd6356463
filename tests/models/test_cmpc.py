"""CMPC against its equations."""

import torch
import torch.nn.functional as F

from refseg.models.cmpc import CMPC, CMPCConfig, Exchange, Kinds, PlaceGraph, weighed_sum
from refseg.models.interface import TokenBatch

B, C, T, H, W = 2, 6, 4, 3, 2
MASK = torch.tensor([[True] * 4, [True, True, False, False]])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def normed(x):
    return x / x.norm()


def network(**changes):
    torch.manual_seed(0)
    sizes = {"width": 8, "fused_width": 6, "mutan_heads": 2, "grid": 4, "image_size": 64, "word_size": 4}
    return CMPC(CMPCConfig(**{**sizes, **changes})).double().eval()


def test_parameters_are_those_of_the_released_code():
    with torch.device("meta"):
        net = CMPC(CMPCConfig.published())
    learned = [(name, p.numel()) for name, p in net.named_parameters() if p.requires_grad]
    assert not any(".backbone." in name for name, _ in learned)
    assert sum(number for _, number in learned) == 76_055_608
    parts = {"text_encoder": 8_837_600, "kinds": 502_504, "comprehension": 43_684_500, "exchanges": 15_021_000}
    for part, expected in {**parts, "walk": 4_405_000}.items():
        assert sum(number for name, number in learned if name.startswith(part + ".")) == expected, part


def test_every_word_is_something():
    kinds = Kinds(C).double()
    shares = kinds(random(B, T, C), MASK)
    torch.testing.assert_close(shares.sum(dim=2), MASK.double())


def test_words_are_weighed_by_what_they_are():
    """Entities and attributes say what to look for; all but the unnecessary ones guide the exchange."""
    net, asked = network(), []
    for part in (net.comprehension[0], net.exchanges[0]):
        part.register_forward_hook(lambda _, inputs, __: asked.append(inputs))
    ids = torch.tensor([[3, 4, 5], [6, 7, 0]])
    tokens = TokenBatch(ids, ids > 0)
    net(tokens, images=torch.rand(1, 3, 64, 64).double())
    words = F.normalize(net.text_encoder(ids, ids > 0), dim=2)
    (_, _, named, relation, _), (_, _, said) = asked
    for b, length in enumerate((3, 2)):
        shares = net.kinds.layers(words[b, :length]).softmax(dim=1)
        torch.testing.assert_close(named[b], normed((shares[:, :2].sum(dim=1)) @ words[b, :length]))
        torch.testing.assert_close(said[b], normed((1 - shares[:, 3]) @ words[b, :length]))
        torch.testing.assert_close(relation[b, :length], shares[:, 2])


def test_the_graph_is_the_product_of_its_adjacency():
    graph = PlaceGraph(C).double()
    for norm in graph.norms:
        torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    perceived, words, relation = random(B, C, H, W), random(B, T, C, seed=1), random(B, T, seed=2).sigmoid()
    result = graph(perceived, words, relation, MASK)
    for b in range(B):
        length = int(MASK[b].sum())
        nodes = perceived[b].flatten(1).T  # (hw, C)
        likeness = graph.of_places(nodes) @ graph.of_words(words[b, :length]).T / C**0.5 * relation[b, :length]
        adjacency = likeness.softmax(dim=1) @ likeness.softmax(dim=0).T
        assert adjacency.shape == (H * W, H * W)
        first, second = graph.norms
        told = F.layer_norm(adjacency @ nodes, (H * W, C), eps=1e-12) * first.weight + first.bias
        moved = graph.update((nodes + told).relu())
        moved = (F.layer_norm(moved, (H * W, C), eps=1e-12) * second.weight + second.bias).relu()
        torch.testing.assert_close(result[b].flatten(1).T, F.normalize(moved, dim=1))


def test_an_exchange_is_its_equation():
    exchange = Exchange(C, 5).double()
    level, first, second = (random(B, C, H, W, seed=seed) for seed in range(3))
    said = random(B, 5, seed=3)
    result = exchange(level, [first, second], said)
    for b in range(B):
        places = level[b].flatten(1).T
        share = (exchange.key(places) @ exchange.query(said[b]) / C**0.5).softmax(dim=0)
        context = normed(exchange.context(torch.cat([share @ places, said[b]])))
        for row, column in ((0, 0), (2, 1)):
            expected = level[b, :, row, column]
            for value, opens, other in zip(exchange.values, exchange.opens, (first, second), strict=True):
                taken = value.weight[:, :, 0, 0] @ other[b, :, row, column] + value.bias
                expected = expected + taken.relu() * opens(context).sigmoid()
            torch.testing.assert_close(result[b, :, row, column], normed(expected))


def test_levels_exchange_at_once_and_are_walked_from_shallow_to_deep():
    net, asked, walked = network(), [], []
    for part in net.exchanges:
        part.register_forward_hook(lambda _, inputs, output: asked.append((*inputs, output)))
    net.walk.register_forward_hook(lambda _, inputs, __: walked.append(inputs[0]))
    ids = torch.tensor([[3, 4, 5]])
    prediction = net(TokenBatch(ids, ids > 0), images=torch.rand(1, 3, 64, 64).double())
    assert list(prediction.auxiliary) == ["level 3", "level 4", "level 5"]
    assert len(net.exchanges) == 6
    old = [level for level, *_ in asked[:3]]
    for number, (_, others, _, _) in enumerate(asked[:3]):
        assert [any(other is level for other in others) for level in old] == [n != number for n in range(3)]
    for (level, *_), (*_, output) in zip(asked[3:], asked[:3], strict=True):
        assert level is output
    assert all(level is output for level, (*_, output) in zip(walked[0], asked[3:], strict=True))
    score = net.level_scores[1]
    torch.testing.assert_close(prediction.auxiliary["level 4"], score(old[1]))


def test_a_sentence_without_words_has_an_answer_and_a_gradient():
    net = network()
    ids = torch.tensor([[0, 0], [3, 0]])
    logits = net(TokenBatch(ids, ids > 0), images=torch.rand(1, 3, 64, 64).double()).mask_logits
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    assert (weighed_sum(random(1, 2, 3), torch.zeros(1, 2)) == 0).all()
