"""The released network: its sheet of facts written out once more with PyTorch's own modules, and each stage compared.

The official weights cannot be here, for they have no licence. So the plain network draws its own. They are copied
tensor by tensor, as official ones would be.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from refseg.models.interface import TokenBatch
from refseg.models.shnet import SHNet, SHNetConfig

C, H, HEADS, SIDE, VOCABULARY = 16, 6, 8, 64, 12
CHANNELS = (8, 16, 24)
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0], [1, 0, 0, 0]])
MASK = IDS > 0


class Plain(nn.Module):
    """The sheet, stage by stage."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, C, batch_first=True)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(k, C, 3, 2, 1), nn.BatchNorm2d(C), nn.LeakyReLU(0.01)) for k in CHANNELS
        )
        self.attention = nn.ModuleList(nn.MultiheadAttention(C, HEADS, batch_first=True) for _ in range(2))
        self.first = nn.ModuleList(nn.Linear(C, C) for _ in range(2))
        self.second = nn.ModuleList(nn.Linear(C, C) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(C) for _ in range(5))
        self.affinity = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * C, C, 3, padding=1), nn.BatchNorm2d(C)) for _ in range(3)
        )
        self.join = nn.Sequential(nn.Conv3d(C, C, 3, padding=(0, 1, 1)), nn.BatchNorm3d(C), nn.LeakyReLU(0.01))
        self.atrous = nn.ModuleList(
            nn.Sequential(nn.Conv2d(C, C, k, padding=p, dilation=d, bias=False), nn.BatchNorm2d(C), nn.ReLU())
            for k, p, d in ((1, 0, 1), (3, 6, 6), (3, 12, 12), (3, 24, 24))
        )
        self.image = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C), nn.ReLU()
        )
        self.mix = nn.Sequential(nn.Conv2d(5 * C, C, 1, bias=False), nn.BatchNorm2d(C), nn.ReLU())
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(C, n, 3, padding=1, bias=False), nn.BatchNorm2d(n), nn.ReLU())
            for n in (C, C, C, C // 2)
        )
        self.head = nn.Conv2d(C // 2, 1, 3, padding=1)

    def read(self, vectors):
        """Runs over the padding, which is masked later."""
        return self.lstm(vectors)[0]

    def project(self, maps):
        return [level(F.adaptive_max_pool2d(x, 2 * H)) for level, x in zip(self.levels, maps, strict=True)]

    def fuse(self, level, words):
        x = torch.cat([level.flatten(2).transpose(1, 2), words], dim=1)
        position = torch.cat([grid_code(), line_code(words.shape[1], C)]).to(x)
        hidden = torch.cat([torch.zeros(len(x), H * H, dtype=torch.bool), ~MASK], dim=1)
        for i in range(2):
            y = self.norms[2 * i](x)
            x = x + self.attention[i](y + position, y + position, y, key_padding_mask=hidden)[0]
            z = self.norms[2 * i + 1](x)
            x = x + self.second[i](self.first[i](z).relu())
        x = self.norms[4](x)
        return x[:, : H * H].transpose(1, 2).unflatten(2, (H, H)), x[:, H * H :]

    def aggregate(self, fused):
        v = [pixels for pixels, _ in fused]
        means = [
            torch.stack([w[: m.sum()].mean(dim=0) for w, m in zip(words, MASK, strict=True)]) for _, words in fused
        ]
        g = []
        for i in range(3):
            g.append(v[i])
            for j in range(3):
                if j != i:
                    tiled = means[j][:, :, None, None].expand(-1, -1, H, H)
                    g[i] = g[i] + self.affinity[i](torch.cat([v[i], tiled], dim=1)).sigmoid() * v[j]
        return self.join(torch.stack(g, dim=2)).squeeze(2)

    def pool(self, joint):
        image = F.interpolate(self.image(joint), (H, H), mode="bilinear", align_corners=True)
        return self.mix(torch.cat([*(branch(joint) for branch in self.atrous), image], dim=1))

    def decode(self, x):
        def twice(x):
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)

        first, second, third, fourth = self.convs
        return self.head(fourth(third(twice(second(twice(first(x)))))))


def line_code(count, width):
    code = torch.zeros(count, width, dtype=torch.float64)
    for place in range(count):
        for i in range(width // 2):
            angle = place * 10000 ** (-2 * i / width)
            code[place, 2 * i], code[place, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return code


def grid_code():
    line = line_code(H, C // 2)
    return torch.stack([torch.cat([line[column], line[row]]) for row in range(H) for column in range(H)])


def official_names(net: SHNet, plain: Plain):
    """Pairs of our module and the plain one's, and what has to be cut apart on the way."""
    yield net.text_encoder.lstm, plain.lstm.state_dict()
    for ours, theirs in zip(net.image_encoder.project, plain.levels, strict=True):
        yield ours, theirs.state_dict()
    for i, ours in enumerate(net.fusion.layers):
        whole = plain.attention[i].state_dict()
        weight, bias = whole["in_proj_weight"], whole["in_proj_bias"]
        yield ours.query_key, {"weight": weight[: 2 * C], "bias": bias[: 2 * C]}
        yield ours.value, {"weight": weight[2 * C :], "bias": bias[2 * C :]}
        yield ours.out, {"weight": whole["out_proj.weight"], "bias": whole["out_proj.bias"]}
        yield ours.norm, plain.norms[2 * i].state_dict()
        yield ours.ffn[0], plain.norms[2 * i + 1].state_dict()
        yield ours.ffn[1], plain.first[i].state_dict()
        yield ours.ffn[4], plain.second[i].state_dict()
    yield net.fusion.final_norm, plain.norms[4].state_dict()
    for ours, (conv, norm) in zip(net.aggregation.gates, plain.affinity, strict=True):
        yield ours.conv, conv.state_dict()
        yield ours.norm, norm.state_dict()
    yield net.aggregation.join.conv, plain.join[0].state_dict()
    yield net.aggregation.join.norm, plain.join[1].state_dict()
    aspp = net.decoder.aspp
    for ours, theirs in zip((*aspp.branches, aspp.mix[0]), (*plain.atrous, plain.mix), strict=True):
        yield ours, theirs.state_dict()
    yield aspp.image[0], plain.image[1].state_dict()
    yield aspp.image[1], plain.image[2].state_dict()
    for ours, theirs in zip(net.decoder.refine, plain.convs, strict=True):
        yield ours, theirs.state_dict()
    yield net.decoder.head, plain.head.state_dict()


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    plain = Plain().double().eval()
    for name, tensor in plain.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn_like(tensor))
    backbone = {"model_type": "resnet", "depths": [1] * 4, "hidden_sizes": [4, *CHANNELS], "embedding_size": 4}
    sizes = {"grid": H, "vocabulary": VOCABULARY, "word_size": 8, "width": C, "fusion_heads": HEADS, "fusion_ffn": C}
    sizes |= {"backbone_config": backbone, "decoder_widths": (C, C, C, C // 2), "max_words": 6}
    net = SHNet(SHNetConfig.released(SIDE, **sizes)).double().eval()
    copied = {id(parameter) for module, _ in official_names(net, plain) for parameter in module.parameters()}
    for module, state in official_names(net, plain):
        module.load_state_dict(state)
    left = [
        name for name, parameter in net.named_parameters() if id(parameter) not in copied and "backbone" not in name
    ]
    assert left == ["text_encoder.embedding.weight"], "each of our tensors has one of theirs"
    net.text_encoder.embedding.weight.data[:2] = 0  # padding, and words that GloVe lacks
    return net, plain


@torch.inference_mode()
def test_every_stage_is_that_of_the_sheet(pair):
    net, plain = pair
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).double()
    exact = {"rtol": 1e-6, "atol": 1e-7}  # places are computed in float32, all else in float64

    words, theirs = net.text_encoder(IDS, MASK), plain.read(net.text_encoder.embedding(F.pad(IDS, (0, 2))))
    torch.testing.assert_close(words[MASK], theirs[:, :4][MASK], **exact)

    encoder = net.image_encoder
    levels, expected = net.encode(images), plain.project(encoder.backbone((images - encoder.mean) / encoder.std))
    torch.testing.assert_close(levels, tuple(expected), **exact)

    fused = [net.fusion(level, words, MASK) for level in levels]
    expected = [plain.fuse(level, theirs[:, :4]) for level in levels]
    for (pixels, met), (their_pixels, their_met) in zip(fused, expected, strict=True):
        torch.testing.assert_close(pixels, their_pixels, **exact)
        torch.testing.assert_close(met[MASK], their_met[MASK], **exact)

    joint, expected = net.aggregation(fused, MASK), plain.aggregate(expected)
    torch.testing.assert_close(joint, expected, **exact)

    pooled, expected = net.decoder.aspp(joint), plain.pool(expected)
    torch.testing.assert_close(pooled, expected, **exact)

    at_the_grid, expected = [], plain.decode(expected)
    hook = net.decoder.head.register_forward_hook(lambda *call: at_the_grid.append(call[-1]))
    logits = net(TokenBatch(IDS, MASK), images=images).mask_logits
    hook.remove()
    torch.testing.assert_close(at_the_grid[0], expected, **exact)
    assert logits.shape == (3, 1, SIDE // 2, SIDE // 2)
    resized = F.interpolate(expected, (SIDE // 2, SIDE // 2), mode="bilinear", align_corners=True)
    torch.testing.assert_close(logits, resized, **exact)
    assert logits.std() > 0.01


def test_its_sizes():
    with torch.device("meta"):
        net = SHNet(SHNetConfig.released(vocabulary=100))
    outside = [*net.image_encoder.backbone.parameters(), net.text_encoder.embedding.weight]
    count = sum(parameter.numel() for parameter in net.parameters()) - sum(p.numel() for p in outside)
    assert count == 59_766_017
    decoder = sum(p.numel() for p in net.decoder.parameters()) - sum(p.numel() for p in net.decoder.aspp.parameters())
    assert decoder == 8_263_425
    assert not net.text_encoder.embedding.weight.requires_grad
    assert (net.config.grid, net.config.output_side, net.config.threshold) == (18, 160, 0.4)


def test_where_it_drops_what():
    with torch.device("meta"):
        net = SHNet(SHNetConfig.released())
    parts = net.named_modules()
    found = {
        name: (type(part), part.p) for name, part in parts if isinstance(part, nn.Dropout | nn.Dropout2d) and part.p
    }
    of_sfm = {
        f"fusion.layers.{layer}.{place}": (nn.Dropout, 0.2) for layer in range(2) for place in ("dropout", "ffn.3")
    }
    of_hcam = {f"aggregation.gates.{level}.dropout": (nn.Dropout2d, 0.2) for level in range(3)}
    of_decoder = {"decoder.aspp.mix.1": (nn.Dropout2d, 0.25), "decoder.dropout": (nn.Dropout2d, 0.2)}
    assert found == of_sfm | of_hcam | of_decoder
    assert [layer.attention_dropout for layer in net.fusion.layers] == [0.2, 0.2]


def test_a_smaller_input_keeps_its_share_of_mask_logits(pair):
    """As a phase of training with another side has."""
    net, _ = pair
    levels = net.encode(torch.rand(1, 3, SIDE // 2, SIDE // 2).double(), H // 2)
    assert net(TokenBatch(IDS[:1], MASK[:1]), features=levels).mask_logits.shape[-1] == SIDE // 4


@torch.inference_mode()
def test_it_is_saved_and_read_back(pair, tmp_path):
    net = copy.deepcopy(pair[0]).float()
    net.save_pretrained(tmp_path)
    loaded = copy.deepcopy(SHNet.from_pretrained(tmp_path))  # a copy, for the file's memory is not aligned
    images = torch.rand(3, 3, SIDE, SIDE)
    answers = [each(TokenBatch(IDS, MASK), images=images).mask_logits for each in (net, loaded)]
    assert torch.equal(*answers)
