"""The inference form answers what the plain form answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from refseg.engines import convolutions, packed
from refseg.engines.fast import FastSHNet, fastest_form
from refseg.engines.fast_encoder import FoldedConv, fold_backbone
from refseg.models.interface import Prediction, TokenBatch
from refseg.models.parts.backbone import build_backbone
from refseg.models.shnet import SHNet, SHNetConfig

RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 64, 64, 64],
    "depths": [1, 1, 2, 3],
    "layer_type": "basic",
}
BACKBONES = {
    "mobilenet_v2": {"backbone_config": {"model_type": "mobilenet_v2", "depth_multiplier": 0.35, "output_stride": 16}},
    "mobilenet_v2, padded evenly": {
        "backbone_config": {"model_type": "mobilenet_v2", "depth_multiplier": 0.35, "tf_padding": False}
    },
    "resnet": {"backbone_config": RESNET},
    "resnet, dilated": {"backbone_config": RESNET, "output_stride": 16},
    "convnext": {"backbone_config": {"model_type": "convnext", "depths": [1, 1, 1, 1], "hidden_sizes": [4, 8, 8, 8]}},
}


def small(**changes: object) -> SHNet:
    """A network whose norms are not those of a fresh one, so that folding them is seen."""
    settings = {**BACKBONES["mobilenet_v2"], "width": 16, "fusion_heads": 2, "fusion_ffn": 16, "grid": 5}
    settings |= {"image_size": 64, "word_size": 8, "aspp_rates": (1, 3, 6), "decoder_widths": (16, 8, 4)}
    torch.manual_seed(0)
    model = SHNet(SHNetConfig(**{**settings, **changes})).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.weight, 1.0, 0.1)
            nn.init.normal_(module.bias, std=0.1)
    return model


@pytest.fixture
def asked() -> dict[str, Any]:
    """Three expressions of one, three and five words about two photographs."""
    ids = torch.tensor([[3, 0, 0, 0, 0], [4, 5, 6, 0, 0], [7, 8, 9, 10, 11]])
    return {"tokens": TokenBatch(ids, ids > 0), "photo_of": torch.tensor([1, 0, 1])}


def assert_same(fast: torch.Tensor | Prediction, plain: torch.Tensor | Prediction) -> None:
    fast, plain = (own.mask_logits if isinstance(own, Prediction) else own for own in (fast, plain))
    assert fast.shape == plain.shape
    assert float((fast - plain).abs().max() / plain.abs().max()) < 1e-4


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.inference_mode()
def test_same_answers(backbone: str, asked: dict[str, Any]) -> None:
    model = small(**BACKBONES[backbone])
    fast = fastest_form(model)
    assert isinstance(fast, FastSHNet)
    images = torch.rand(2, 3, 64, 64)
    ahead = fast.encode(images)
    for own, level in zip(ahead[:3], model.encode(images), strict=True):
        assert_same(own, level)
    assert_same(fast(**asked, features=ahead), model(**asked, images=images))


@pytest.mark.parametrize(
    "changes",
    [
        {"fusion_layers": 1},
        {"fusion_layers": 3},
        {"position": False},
        {"aspp_rates": (2,)},
        {"image_size": 75},  # every map of the encoder has an odd side
        {"image_size": 68},  # the later ones have
        {"grid": 4},  # the side of the later levels
        {"decoder_widths": (128, 128, 8)},  # both orders of convolution and up-sampling
    ],
    ids=str,
)
@torch.inference_mode()
def test_same_answers_of_other_sizes(changes: dict[str, object], asked: dict[str, Any]) -> None:
    model = small(**changes)
    side = model.config.image_size
    images, fast = torch.rand(2, 3, side, side), fastest_form(model)
    for own, level in zip(fast.encode(images)[:3], model.encode(images), strict=True):
        assert_same(own, level)
    assert_same(fast(**asked, images=images), model(**asked, images=images))


@pytest.mark.parametrize("wide", [False, True])
@torch.inference_mode()
def test_same_answers_on_every_processor(wide: bool, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (packed, convolutions):
        monkeypatch.setattr(module, "wide_registers", lambda: wide)
    model, images = small(width=128, decoder_widths=(128, 64, 8)), torch.rand(2, 3, 64, 64)
    assert_same(fastest_form(model)(**asked, images=images), model(**asked, images=images))


@torch.inference_mode()
def test_a_sentence_without_words_has_a_defined_answer() -> None:
    model = small()
    ids = torch.zeros(1, 2, dtype=torch.long)
    images = torch.rand(1, 3, 64, 64)
    tokens = TokenBatch(ids, ids > 0)
    assert_same(fastest_form(model)(tokens, images=images), model(tokens, images=images))


@torch.inference_mode()
def test_the_plain_form_stays_as_it_was(asked: dict[str, Any]) -> None:
    model, images = small(), torch.rand(2, 3, 64, 64)
    before = model(**asked, images=images).mask_logits
    fastest_form(model)(**asked, images=images)
    assert torch.equal(model(**asked, images=images).mask_logits, before)


def test_nothing_is_recorded_for_gradients(asked: dict[str, Any]) -> None:
    model, images = small(), torch.rand(2, 3, 64, 64)
    answers = fastest_form(model)(**asked, images=images).mask_logits
    assert not answers.requires_grad
    assert_same(answers, model(**asked, images=images).mask_logits.detach())


def test_what_has_no_inference_form_stays_plain() -> None:
    for changes in ({"fusion": "concat"}, {"aggregation": "sum"}):
        model = small(**changes)
        assert fastest_form(model) is model
    assert not model.training


def test_every_norm_of_a_convolutional_backbone_is_folded() -> None:
    backbone = fold_backbone(build_backbone(SHNetConfig(backbone_config=dict(RESNET)).backbone_config, None))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert any(isinstance(module, FoldedConv) for module in backbone.modules())
