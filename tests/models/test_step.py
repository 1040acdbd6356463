"""STEP against its loop, written out for one sentence at a time."""

import torch
import torch.nn.functional as F
from tiny import TINY

from refseg.models.interface import TokenBatch
from refseg.models.parts.lateral import coordinates
from refseg.models.step import STEP, ConvGRU, STEPConfig

SIZES = {name: TINY[name] for name in ("backbone_config", "image_size", "grid", "vocabulary", "word_size", "width")}
IDS = torch.tensor([[3, 4, 5], [6, 7, 0]])


def network():
    torch.manual_seed(0)
    sizes = {"text_width": 12, "seen_width": 10, "common_width": 8, "folds": 5, "dropout": 0.0}
    net = STEP(STEPConfig(**SIZES, **sizes)).double().eval()
    for name, weight in net.named_parameters():
        if ".backbone." in name and weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight)
    return net


def test_it_is_its_loop():
    net = network()
    images = torch.rand(2, 3, 64, 64).double()
    levels = []
    for convolve, level in zip(net.levels, net.image_encoder(images), strict=True):
        level = F.normalize(convolve(level), dim=1)
        levels.append(torch.cat([level, coordinates(level)], dim=1))
    answer = net(TokenBatch(IDS, IDS > 0), images=images)
    assert list(answer.auxiliary) == ["fold 1", "fold 2", "fold 3", "fold 4"]
    for row, count in enumerate((3, 2)):
        words = net.text_encoder(IDS[row : row + 1, :count], torch.ones(1, count, dtype=torch.bool))[0]
        state, steered = torch.zeros(1, 16, 4, 4).double(), torch.zeros(8).double()
        for fold, depth in enumerate((2, 1, 0, 1, 2)):
            x = levels[depth][row : row + 1]
            shares = net.choose.weigh((net.choose.hear(words) + steered).tanh()).softmax(dim=0)  # (T, 1)
            sentence = net.of_sentence((shares * words).sum(dim=0)).tanh()
            heat = F.cosine_similarity(net.of_places(x).tanh(), sentence[None, :, None, None]).clamp(min=0)
            state = net.refine(net.refine.see(x), heat[:, None], state)
            logits = net.score(state)
            expected = answer.auxiliary.get(f"fold {fold + 1}", answer.mask_logits)[row : row + 1]
            torch.testing.assert_close(expected, logits, rtol=1e-9, atol=1e-12)
            weight = logits.sigmoid()
            mean = (weight * x).sum(dim=(0, 2, 3)) / weight.sum()
            steered = net.choose.see.weight[:, :, 0, 0] @ mean


def test_the_gru_is_its_equations():
    torch.manual_seed(0)
    gru = ConvGRU(3, 1, 4).double()
    x, heat, state = (torch.randn(2, c, 3, 3).double() for c in (3, 1, 4))
    of_update, of_reset, of_new = gru.see.weight.chunk(3)
    bias_update, bias_reset, bias_new = gru.see.bias.chunk(3)
    inner_update, inner_reset = gru.gates.weight.chunk(2)
    everything = torch.cat([x, heat, state], dim=1)

    def convolved(inputs, of_seen, inner, bias):
        return F.conv2d(inputs, torch.cat([of_seen, inner], dim=1), bias, padding=1)

    z = convolved(everything, of_update, inner_update, bias_update).sigmoid()
    r = convolved(everything, of_reset, inner_reset, bias_reset).sigmoid()
    n = convolved(torch.cat([x, heat, r * state], dim=1), of_new, gru.candidate.weight, bias_new).tanh()
    torch.testing.assert_close(gru(gru.see(x), heat, state), (1 - z) * state + z * n)


def test_the_papers_network_has_32_million_weights():
    """There is no published count; the sizes are those that its docstring decides."""
    with torch.device("meta"):
        net = STEP(STEPConfig.paper())
    assert sum(weight.numel() for weight in net.parameters() if weight.requires_grad) == 31_721_909
