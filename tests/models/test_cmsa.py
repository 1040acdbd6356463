"""CMSA against its steps, with every pair of a word and a place written out."""

import torch
import torch.nn.functional as F
from tiny import TINY

from refseg.models.cmsa import CMSA, CMSAConfig, attend
from refseg.models.interface import TokenBatch
from refseg.models.parts.lateral import coordinates

SIZES = {name: TINY[name] for name in ("backbone_config", "image_size", "vocabulary", "word_size", "width")}
IDS = torch.tensor([[3, 4, 5], [6, 7, 0]])


def network(grid=3):
    torch.manual_seed(0)
    net = CMSA(CMSAConfig(**SIZES, grid=grid, attention_width=16, dropout=0.0)).double().eval()
    for name, weight in net.named_parameters():
        if ".backbone." in name and weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight)
    return net


def pairs_of(level, words):
    """[v; P; w] for each word: (T, channels, h, w), for one sentence."""
    tiled = words[:, :, None, None].expand(-1, -1, *level.shape[2:])
    alike = torch.cat([level, coordinates(level)], dim=1).expand(len(words), -1, -1, -1)
    return torch.cat([alike, tiled], dim=1)


def convolved(layer_of_places, layer_of_words, pairs):
    weight = torch.cat([layer_of_places.weight, layer_of_words.weight[:, :, None, None]], dim=1)
    return F.conv2d(pairs, weight, layer_of_places.bias)


def self_attention(pairs, projected, out):
    """pairs (T, D, h, w), projected (T, 3·d, h, w) → the mean over words of F', (D, h, w)."""
    query, key, value = projected.relu().chunk(3, dim=1)
    key, value = (F.max_pool3d(x.movedim(0, 1), 2, ceil_mode=True).flatten(1).T for x in (key, value))
    query = query.movedim(1, 3).flatten(0, 2)
    likeness = query @ key.T
    found = F.linear(likeness.softmax(dim=1) @ value, out.weight, out.bias).relu()
    return (pairs + found.view(*projected[:, 0].shape, -1).movedim(3, 1)).mean(dim=0)


def test_it_is_its_steps():
    net = network()
    images = torch.rand(2, 3, 64, 64).double()
    third, fourth, fifth = net.image_encoder(images)
    fifth = net.deepest(fifth)
    expected = []
    for row, count in enumerate((3, 2)):
        words = F.normalize(net.text_encoder.embedding(IDS[row, :count]), dim=1)
        levels = []
        for level, raw in ((net.third, third), (net.fourth, fourth)):
            pairs = convolved(level.see, level.hear, pairs_of(F.normalize(raw[row : row + 1], dim=1), words)).relu()
            projected = F.conv2d(pairs, level.project.weight[:, :, None, None], level.project.bias)
            levels.append(level.narrow(self_attention(pairs, projected, level.out)).relu())
        pairs = pairs_of(F.normalize(fifth[row : row + 1], dim=1), words)
        projected = convolved(net.fifth.see, net.fifth.hear, pairs)
        levels.append(net.fifth.narrow(self_attention(pairs, projected, net.fifth.out)).relu())
        joint = net.gates([(level[None], words[None]) for level in levels], torch.ones(1, count, dtype=torch.bool))
        expected.append(net.score(joint))
    answer = net(TokenBatch(IDS, IDS > 0), images=images).mask_logits
    torch.testing.assert_close(answer, torch.cat(expected), rtol=1e-9, atol=1e-12)


def test_padded_words_are_no_keys():
    """Not even where the word next to them in the pool is real, or where they are the largest."""
    torch.manual_seed(1)
    mask = torch.tensor([[True, True, True, False, False, False]])
    projected = torch.randn(1, 6, 3, 3, 12).double()
    projected[:, 3:] += 100
    torch.testing.assert_close(attend(projected, mask)[:, :3], attend(projected[:, :3], mask[:, :3]))


def test_the_places_are_those_of_a_sentence_without_words():
    net = network()
    features = net.encode(torch.rand(1, 3, 64, 64).double())
    level = torch.cat([features[-1], torch.zeros(1, 8, 3, 3).double()], dim=1)
    torch.testing.assert_close(net.places(features), net.fifth.narrow(level).relu())


def test_the_gates_share_starts_even_and_is_learned():
    share = network().gates.share
    assert share.tolist() == [0.5] * 3 and share.requires_grad
