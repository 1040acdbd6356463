"""LSCM against its equations, with trees made by hand."""

import torch
import torch.nn.functional as F

from refseg.models.interface import TokenBatch
from refseg.models.lscm import LSCM, SUPPRESSED, LSCMConfig, WordGraph, greatest

B, C, T, H, W = 2, 6, 4, 3, 2
MASK = torch.tensor([[True] * 4, [True, True, False, False]])
HEADS = torch.tensor([[2, 2, 2, 1], [1, 1, 0, 0]])
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def network():
    torch.manual_seed(0)
    sizes = {"width": 8, "fused_width": 6, "mutan_heads": 2, "grid": 4, "image_size": 64, "word_size": 4}
    return LSCM(LSCMConfig(**sizes)).double().eval()


def test_parameters_are_those_of_the_released_code():
    with torch.device("meta"):
        net = LSCM(LSCMConfig.published())
        levels = net.encode(torch.empty(1, 3, 320, 320))
    assert [tuple(level.shape) for level in levels] == [(1, 1000, 40, 40)] * 4
    learned = [(name, p.numel()) for name, p in net.named_parameters() if p.requires_grad]
    assert not any(".backbone." in name for name, _ in learned)
    assert sum(number for _, number in learned) == 88_285_105
    parts = {"text_encoder": 11_711_600, "image_encoder": 5_892_000, "contexts": 66_254_000, "walk": 4_405_000}
    for part, expected in parts.items():
        assert sum(number for name, number in learned if name.startswith(part + ".")) == expected, part
    assert net.config.max_words == 30 and net.config.parses


def test_the_graph_of_words_is_its_equations():
    graph = WordGraph(C).double()
    for norm in graph.norms:
        torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    perceived, words = random(B, C, H, W), random(B, T, C, seed=1)
    result = graph(perceived, words, HEADS, MASK)
    trees = [{(0, 2), (1, 2), (1, 3)}, {(0, 1)}]
    for b, tree in enumerate(trees):
        length = int(MASK[b].sum())
        places = perceived[b].flatten(1).T
        looks = (graph.of_places(places) @ graph.of_words(words[b, :length]).T / C**0.5).softmax(dim=0)
        seen = F.normalize(looks.T @ places, dim=1)
        hears = (graph.query(seen) @ graph.key(seen).T / C**0.5).softmax(dim=1)
        for i in range(length):
            for j in range(length):
                if (min(i, j), max(i, j)) not in tree:
                    hears[i, j] = hears[i, j] * 0.1
        first, second = graph.norms
        told = F.layer_norm(hears @ seen, (length, C), eps=1e-12) * first.weight + first.bias
        told = graph.update((seen + told).relu())
        told = (F.layer_norm(told, (length, C), eps=1e-12) * second.weight + second.bias).relu()
        torch.testing.assert_close(result[b].flatten(1).T, F.normalize(looks @ told, dim=1))
    assert SUPPRESSED == 0.1


def test_the_tree_decides_and_a_chain_stands_in_for_it():
    net = network()
    photograph = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        given, chain, none = (
            net(TokenBatch(IDS, IDS > 0, heads), images=photograph).mask_logits
            for heads in (HEADS, torch.tensor([[0, 0, 1, 2], [0, 0, 0, 0]]), None)
        )
    assert torch.equal(chain, none)
    assert (given - chain)[0].abs().max() > 1e-6
    torch.testing.assert_close(given[1], chain[1])  # two words have but one tree, whichever is the head


def test_levels_are_walked_from_deep_to_shallow_and_back():
    net, walked, found = network(), [], []
    net.walk.register_forward_hook(lambda _, inputs, __: walked.append(inputs[0]))
    for part in net.contexts:
        part.register_forward_hook(lambda _, inputs, output: found.append((*inputs, output)))
    prediction = net(TokenBatch(IDS, IDS > 0, HEADS), images=torch.rand(1, 3, 64, 64).double())
    assert list(prediction.auxiliary) == ["level 2", "level 3", "level 4", "level 5"]
    order = [[x is output for *_, output in found].index(True) for x in walked[0]]
    assert order == [3, 2, 1, 0, 1, 2, 3]
    _, words, sentence, *_ = found[0]
    states = net.text_encoder(IDS, IDS > 0)
    for b, length in enumerate((4, 2)):
        torch.testing.assert_close(sentence[b], F.normalize(states[b, :length].amax(dim=0), dim=0))
        torch.testing.assert_close(words[b, :length], F.normalize(states[b, :length], dim=1))


def test_a_sentence_without_words_has_an_answer_and_a_gradient():
    assert greatest(random(1, 2, 3), torch.tensor([[False, False]])).tolist() == [[0, 0, 0]]
    net = network()
    ids = torch.tensor([[0, 0], [3, 0]])
    logits = net(TokenBatch(ids, ids > 0), images=torch.rand(1, 3, 64, 64).double()).mask_logits
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
