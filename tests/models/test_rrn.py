"""RRN against its steps, written out as its authors' code has them."""

import torch
import torch.nn.functional as F
from tiny import TINY

from refseg.models.interface import TokenBatch
from refseg.models.parts.lateral import coordinates
from refseg.models.rrn import RRN, RRNConfig

SIZES = {name: TINY[name] for name in ("backbone_config", "image_size", "grid", "vocabulary", "word_size", "width")}
IDS = torch.tensor([[3, 4, 5], [6, 7, 0]])


def network():
    torch.manual_seed(0)
    return RRN(RRNConfig(**SIZES, text_width=12, dropout=0.0)).double().eval()


def test_it_is_its_steps():
    net = network()
    images = torch.rand(2, 3, 64, 64).double()
    third, fourth, fifth = net.image_encoder(images)
    words = net.text_encoder(IDS, IDS > 0)
    sentence = F.normalize(torch.stack([words[0, 2], words[1, 1]]), dim=1)
    seen = F.normalize(net.deepest(fifth), dim=1)
    joint = torch.cat([seen, sentence[:, :, None, None].expand(-1, -1, 4, 4), coordinates(seen)], dim=1)
    weight = torch.cat(
        [net.see.weight[:, :12], net.hear.weight[:, :, None, None], net.see.weight[:, 12:]], dim=1
    )  # of one convolution over the three
    walk = [F.conv2d(joint, weight, net.see.bias).relu()]
    for lateral, level in zip(reversed(net.laterals), (fifth, fourth, third), strict=True):
        walk.append(lateral(level).relu())
    expected = net.score(net.refine(walk))
    torch.testing.assert_close(net(TokenBatch(IDS, IDS > 0), images=images).mask_logits, expected)


def test_the_published_one_has_a_logit_for_each_eight_pixels():
    config = RRNConfig.published()
    assert (config.image_size, config.grid, config.output_side, config.max_words) == (320, 40, 40, 20)
    assert RRNConfig.published(vocabulary=8803).vocabulary == 8803
