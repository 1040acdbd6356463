import copy
import json

import pytest
import torch
from tiny import tiny_config

from refseg.errors import RefsegError
from refseg.models.interface import ReferringConfig, TokenBatch
from refseg.models.shnet import SHNet, SHNetConfig
from refseg.training.losses import mask_loss

FUSIONS = ("sfm", "concat", "tile")
AGGREGATIONS = (
    *("hcam", "conv3d", "convlstm", "convlstm-rrn", "sum"),
    *("mgate", "mgate-cmsa", "tgfe", "tgfe-cmpc", "gbfm", "gbfm-brinet"),
)
IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 0, 0, 0], [4, 0, 0, 0, 0]])
MASK = IDS > 0
EXACT = {"rtol": 1e-4, "atol": 1e-5}


def network(**changes):
    """Weights larger than a fresh network's, whose answers hardly differ from each other."""
    torch.manual_seed(0)
    sizes = {"word_size": 6, "width": 8, "fusion_ffn": 8, "aspp_rates": (1, 2)}
    model = SHNet(tiny_config(**{**sizes, **changes})).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter)
    return model


def ask(model, ids, mask, **about):
    return model(TokenBatch(ids, mask), **about).mask_logits


@pytest.fixture(scope="module")
def net():
    return network()


@pytest.fixture
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_trainable_weight_learns(fusion, aggregation, images):
    model = network(fusion=fusion, aggregation=aggregation, dropout=0.0).train()
    logits = ask(model, IDS, MASK, images=images)
    assert logits.shape == (3, 1, 16, 16) == ask(model.eval(), IDS, MASK, images=images).shape
    mask_loss(logits, (torch.rand(3, 1, 16, 16) > 0.7).float(), dice_weight=1.0).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("image_encoder.backbone."):
            assert parameter.grad is None and not parameter.requires_grad, name
        else:
            assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("fusion", FUSIONS)
@torch.inference_mode()
def test_an_answer_depends_on_neither_padding_nor_company(fusion, aggregation, images):
    model, images = network(fusion=fusion, aggregation=aggregation).double(), images.double()
    together = ask(model, IDS, MASK, images=images)
    for i, length in enumerate(MASK.sum(dim=1)):
        alone = ask(model, IDS[i : i + 1, :length], MASK[i : i + 1, :length], images=images[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], **EXACT)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(ask(model, IDS[order], MASK[order], images=images[order]), together[order], **EXACT)
    assert together.std() > 0.01


@torch.inference_mode()
def test_both_the_photograph_and_the_words_matter(net, images):
    answers = ask(net, IDS, MASK, images=images)
    assert (answers - ask(net, IDS, MASK, images=images.flip(0))).abs().max() > 0.01
    assert (answers - ask(net, IDS.flip(0), MASK.flip(0), images=images)).abs().max() > 0.01


@torch.inference_mode()
def test_expressions_find_their_photograph(net, images):
    photo_of = torch.tensor([1, 0, 1])
    asked = ask(net, IDS, MASK, images=images[:2], photo_of=photo_of)
    levels = net.encode(images[:2])
    assert torch.equal(ask(net, IDS, MASK, features=levels, photo_of=photo_of), asked)
    for i, photo in enumerate(photo_of):
        alone = ask(net, IDS[i : i + 1], MASK[i : i + 1], images=images[photo : photo + 1])
        torch.testing.assert_close(asked[i : i + 1], alone, **EXACT)


@torch.inference_mode()
def test_one_photograph_serves_every_expression(net, images):
    shared = ask(net, IDS, MASK, images=images[:1])
    torch.testing.assert_close(shared, ask(net, IDS, MASK, images=images[:1].expand(3, -1, -1, -1)), **EXACT)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("fusion", FUSIONS)
@torch.inference_mode()
def test_unknown_words_and_no_words_have_an_answer(fusion, aggregation, images):
    model = network(fusion=fusion, aggregation=aggregation)
    assert ask(model, torch.ones_like(IDS), MASK, images=images).isfinite().all()
    assert ask(model, torch.zeros_like(IDS), torch.zeros_like(MASK), images=images).isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [
        {"pixel_mean": (0.1, 0.2, 0.3), "pixel_std": (0.4, 0.5, 0.6)},
        {"backbone_config": {"model_type": "resnet", "depths": [1] * 4, "hidden_sizes": [8] * 4}, "output_stride": 8},
        {"fusion": "concat", "aggregation": "convlstm", "threshold": 0.3},
    ],
    ids=["statistics", "dilated resnet", "ablation"],
)
@torch.inference_mode()
def test_a_saved_network_answers_with_the_same_bits(changes, tmp_path, images):
    saved = network(**changes)
    saved.save_pretrained(tmp_path)
    loaded = SHNet.from_pretrained(tmp_path)
    assert not loaded.training
    # A copy, for the file's own memory is not aligned, and then kernels may add in another order.
    loaded = copy.deepcopy(loaded)
    assert torch.equal(ask(loaded, IDS, MASK, images=images), ask(saved, IDS, MASK, images=images))
    assert loaded.config.threshold == saved.config.threshold
    # Statistics that were not written to the checkpoint would come back as whatever the memory held.
    assert loaded.image_encoder.mean.flatten().tolist() == pytest.approx(list(saved.config.pixel_mean))
    assert loaded.image_encoder.std.flatten().tolist() == pytest.approx(list(saved.config.pixel_std))


def test_the_network_of_the_paper():
    """Section 4.2; on the meta device, for its weights fill 400 MB."""
    with torch.device("meta"):
        model = SHNet(SHNetConfig.paper(vocabulary=10_000))
        levels = model.encode(torch.empty(1, 3, 320, 320))
        logits = ask(model, torch.empty(2, 25, dtype=torch.long), torch.ones(2, 25, dtype=torch.bool), features=levels)
    assert [tuple(level.shape) for level in levels] == [(1, 512, 18, 18)] * 3
    assert logits.shape == (2, 1, 72, 72)
    stages = model.image_encoder.backbone.net.encoder.stages
    assert [len(stage.layers) for stage in stages] == [3, 4, 23, 3]
    assert model.image_encoder.backbone.channels == (512, 1024, 2048)
    assert model.config.output_stride == 16 and model.config.freeze_backbone
    assert model.text_encoder.embedding.weight.shape == (10_000, 300)
    assert model.text_encoder.lstm.hidden_size == 512
    assert {layer.heads for layer in model.fusion.layers} == {8}


def test_the_papers_baseline_hands_2c_channels_to_aspp():
    with torch.device("meta"):
        model = SHNet(SHNetConfig.paper(fusion="tile", aggregation="sum"))
    assert {branch[0].in_channels for branch in model.decoder.aspp.branches} == {1024}
    assert model.decoder.aspp.image.in_channels == 1024 and model.decoder.aspp.mix[0][0].out_channels == 512


@torch.inference_mode()
def test_a_checkpoint_from_before_a_setting_was_there_answers_with_the_same_bits(tmp_path, images):
    saved = network()
    saved.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    old = {"aggregation", "aspp_rates", "decoder_widths", "fusion", "fusion_ffn", "fusion_heads", "fusion_layers"}
    shared = {name for name in config if name in ReferringConfig.settings()}
    newer = set(SHNetConfig.settings()) - shared - old - {"position"}
    assert newer <= set(config)
    kept = {name: value for name, value in config.items() if name not in newer}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    loaded = copy.deepcopy(SHNet.from_pretrained(tmp_path))
    assert all(getattr(loaded.config, name) == getattr(saved.config, name) for name in newer)
    assert torch.equal(ask(loaded, IDS, MASK, images=images), ask(saved, IDS, MASK, images=images))


def test_ablations_of_the_paper_are_values():
    with torch.device("meta"):
        parts = SHNet(SHNetConfig.paper(448, fusion="concat", aggregation="sum"))
    assert parts.config.image_size == 448
    assert {type(parts.fusion).__name__, type(parts.aggregation).__name__} == {"ConcatFusion", "SumAggregation"}


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        ({"fusion": "sfn"}, "sfm"),
        ({"aggregation": "hcm"}, "hcam"),
        ({"width": 9}, "fusion_heads"),
        ({"grid": 1}, "grid"),
        ({"image_size": 0}, "image_size"),
        ({"decoder_widths": (8, 8)}, "three"),
        ({"position_code": "learnt"}, "scaled, counted"),
        ({"mask_side": 1}, "mask_side is 1; give a whole number from 2"),
        ({"leaky_slope": 1}, "leaky_slope is 1; give a number from 0 up to 1"),
        ({"attention_dropout": None}, "attention_dropout"),
        ({"aspp_dropout": 1.5}, "aspp_dropout"),
        ({"embedding_dropout": "0.2"}, "embedding_dropout"),
        ({"dropout": "1e-1"}, "dropout"),
        ({"backbone_config": {"model_type": "resnet", "layer_type": "round"}}, "basic,bottleneck"),
        ({"backbone_config": {"model_type": "resnett"}}, "resnet"),
        ({"backbone_config": {"depths": [1]}}, "model_type"),
    ],
)
def test_faults_of_the_config_name_the_cure(changes, cure):
    with pytest.raises(RefsegError, match=cure):
        tiny_config(**changes)
