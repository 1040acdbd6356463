"""EFN: its published counts, the co-attention written out, and what stages do when words have entered them."""

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY

from refseg.errors import RefsegError
from refseg.models.efn import EFN, EFNConfig, EncoderFusion, Split
from refseg.models.interface import TokenBatch

SIZES = {name: TINY[name] for name in ("backbone_config", "image_size", "grid", "vocabulary", "word_size")}
IDS = torch.tensor([[3, 4, 5], [6, 7, 0]])
TOKENS = TokenBatch(IDS, IDS > 0)
THREE_STAGES = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 24],
    "depths": [1, 1, 1],
    "layer_type": "basic",
}


def network(**changes):
    torch.manual_seed(0)
    return EFN(EFNConfig(**{**SIZES, "width": 16, **changes})).double().eval()


def count(*modules):
    return sum(weight.numel() for module in modules for weight in module.parameters())


def test_its_parts_have_the_published_counts():
    with torch.device("meta"):
        net = EFN(EFNConfig.published())
    assert count(net.text_encoder) == 9_615_872
    assert count(net.context) == 1_580_544
    assert [count(fusion) for fusion in (net.third, net.fourth, net.fifth)] == [17_079_811, 24_158_723, 38_316_547]


def test_words_are_attended_to_and_exchanged():
    torch.manual_seed(0)
    fusion = EncoderFusion(6, 16).double().eval()
    for weight in fusion.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    level, words, sentence = (torch.randn(1, *size).double() for size in ((6, 3, 2), (4, 16), (16,)))
    mask = torch.tensor([[True, True, True, False]])
    given = {}
    fusion.with_sentence.register_forward_hook(lambda _, __, result: given.update(places=F.normalize(result, dim=1)))
    fusion.back.register_forward_pre_hook(lambda _, inputs: given.update(exchanged=inputs[0]))
    result = fusion(level, fusion.see(level), words, sentence, mask)
    u = given["places"][0].flatten(1).T  # (N, C)
    z = fusion.query(given["places"])[0].flatten(1).T
    shares = (z @ words[0, :3].T).softmax(dim=1)
    e = shares @ words[0, :3]
    s = (
        F.conv2d(given["places"], fusion.of_places.weight)[0].flatten(1).T
        @ (e @ fusion.of_words.weight[:, :, 0, 0].T).T
    )
    to_words = torch.stack([sum(s[i].softmax(dim=0)[j] * e[i] for i in range(6)) for j in range(6)])
    to_places = torch.stack([sum(s[:, j].softmax(dim=0)[i] * u[j] for j in range(6)) for i in range(6)])
    to_places, to_words = (x.T.reshape(1, 16, 3, 2) for x in (to_places, to_words))
    exchanged = F.normalize(torch.cat([fusion.to_places(to_places), fusion.to_words(to_words)], dim=1), dim=1)
    torch.testing.assert_close(given["exchanged"], exchanged)
    torch.testing.assert_close(result, F.normalize(level, dim=1) + F.normalize(fusion.back(exchanged), dim=1))


@pytest.mark.parametrize("backbone", [TINY["backbone_config"], THREE_STAGES], ids=["mobilenet_v2", "resnet"])
def test_the_backbone_goes_on_with_fused_maps(backbone):
    """With a fusion that only passes on, the decoder gets the backbone's own maps."""
    net = network(backbone_config=backbone)
    images = torch.rand(2, 3, 64, 64).double()
    own = net.image_encoder.backbone(net.pixels(images))
    received = []
    net.decoder.register_forward_pre_hook(lambda _, inputs: received.extend(inputs[0]))
    for fusion in (net.third, net.fourth, net.fifth):
        fusion.forward = lambda level, *_: level
    net(TOKENS, images=images)
    assert [level.shape[-1] for level in received[:2]] == [32, 16]
    for level, expected in zip(received[-3:], own, strict=True):
        torch.testing.assert_close(level, expected)


def test_body_and_edge_make_the_map_and_the_body_is_the_map_at_first():
    torch.manual_seed(0)
    split = Split(8).double()
    x = torch.randn(2, 8, 6, 6).double()
    body, edge = split(x)
    torch.testing.assert_close(body, x)
    torch.testing.assert_close(body + edge, x)
    torch.nn.init.normal_(split.affine[2].weight)
    body, edge = split(x)
    assert (body - x).abs().max() > 0.1
    torch.testing.assert_close(body + edge, x)


def test_each_scale_answers_on_the_way():
    prediction = network()(TOKENS, images=torch.rand(1, 3, 64, 64).double())
    assert list(prediction.auxiliary) == [
        *("scale 1", "scale 2", "scale 3"),
        *("body 1", "body 2", "body 3", "body 4"),
    ]
    assert list(prediction.outlines) == ["outline 1", "outline 2", "outline 3", "outline 4"]
    assert prediction.outlines["outline 4"].shape == prediction.mask_logits.shape


@pytest.mark.parametrize("freeze", [True, False])
def test_stages_that_read_fused_maps_learn_their_statistics(freeze):
    net = network(freeze_backbone=freeze).train()
    learning = {name for name, module in net.image_encoder.backbone.named_modules() if module.training}
    assert learning and all(int(name.split(".")[2]) > 4 for name in learning)
    assert not any(module.training for module in net.eval().modules())


def test_one_sentence_of_one_word_can_be_learned_from():
    net = network().train()
    tokens = TokenBatch(IDS[:1, :1], IDS[:1, :1] > 0)
    logits = net(tokens, images=torch.rand(1, 3, 96, 96).double()).mask_logits
    assert logits.isfinite().all()


def test_wrong_sizes_and_backbones_are_named():
    for changes, cure in (
        ({"width": 24}, "width is 24; give a multiple of 16"),
        ({"image_size": 100}, "give grid 6 and image_size 96"),
        ({"backbone_config": {"model_type": "swin", "depths": [1, 1, 1, 1]}}, "swin cannot be taken apart"),
    ):
        with pytest.raises(RefsegError, match=cure):
            network(**changes)
