import pytest
import torch
from torch import nn
from transformers import AutoConfig

from refseg.errors import RefsegError
from refseg.models.parts.backbone import build_backbone
from refseg.models.parts.image_encoder import ImageEncoder, PooledLevel

RESNET = {
    "model_type": "resnet",
    "depths": [1, 1, 2, 3],
    "hidden_sizes": [16, 24, 32, 40],  # with fewer, a ReLU may be dead at every pixel
    "embedding_size": 4,
    "layer_type": "bottleneck",
}
MOBILENET = {"model_type": "mobilenet_v2", "depth_multiplier": 0.35, "output_stride": 16}
CONVNEXT = {"model_type": "convnext", "depths": [1, 1, 1, 1], "hidden_sizes": [4, 6, 8, 10]}
SWIN = {"model_type": "swin", "embed_dim": 4, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}
BACKBONES = {
    "mobilenet_v2": (MOBILENET, None, (8, 16, 16)),
    "mobilenet_v2 at 32": ({**MOBILENET, "output_stride": 32}, None, (8, 16, 32)),
    "resnet": (RESNET, None, (8, 16, 32)),
    "resnet at 32": (RESNET, 32, (8, 16, 32)),
    "resnet at 16": (RESNET, 16, (8, 16, 16)),
    "resnet at 8": (RESNET, 8, (8, 8, 8)),
    "basic resnet at 8": ({**RESNET, "layer_type": "basic"}, 8, (8, 8, 8)),
    "convnext": (CONVNEXT, None, (8, 16, 32)),
    "swin": ({**SWIN, "image_size": 64}, None, (8, 16, 32)),
}


def backbone(settings, output_stride=None):
    settings = dict(settings)
    return build_backbone(AutoConfig.for_model(settings.pop("model_type"), **settings), output_stride)


def encoder(settings=RESNET, output_stride=None, freeze=True, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)):
    torch.manual_seed(0)
    net = backbone(settings, output_stride)
    levels = [PooledLevel(channels, 8) for channels in net.channels]
    return ImageEncoder(net, levels, 4, mean, std, freeze=freeze)


@pytest.mark.parametrize("name", BACKBONES)
def test_three_levels_of_declared_channels_and_strides(name):
    settings, output_stride, strides = BACKBONES[name]
    net = backbone(settings, output_stride).eval()
    maps = net(torch.rand(2, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 64 // s, 64 // s) for c, s in zip(net.channels, strides, strict=True)
    ]


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet at 16", "convnext", "swin"])
@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_backbone_gets_no_gradient_and_a_free_one_everywhere(name, freeze):
    settings, output_stride, _ = BACKBONES[name]
    net = encoder(settings, output_stride, freeze).train()
    levels = net(torch.rand(4, 3, 64, 64))
    weights = torch.randn(4, 8, 4, 4)
    sum((level * weights).sum() for level in levels).backward()
    untouched = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    expected = [n for n, _ in net.named_parameters() if n.startswith("backbone.")] if freeze else []
    assert [n for n in untouched if freeze or ".swin.layernorm." not in n] == expected  # it serves classification


@pytest.mark.parametrize("freeze", [True, False])
def test_training_never_moves_the_statistics_of_the_backbone(freeze):
    net = encoder(MOBILENET, freeze=freeze).train()
    before = {name: tensor.clone() for name, tensor in net.named_buffers()}
    net(torch.rand(2, 3, 64, 64))
    moved = {name for name, tensor in net.named_buffers() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith("project.") for name in moved)


def test_a_backbone_from_random_weights_learns_its_statistics():
    net = encoder(MOBILENET, freeze=False)
    net.keep_statistics = False
    before = {name: tensor.clone() for name, tensor in net.named_buffers()}
    net.train()(torch.rand(2, 3, 64, 64))
    moved = {name for name, tensor in net.named_buffers() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("backbone.") and name.endswith("running_mean") for name in moved)
    net.eval()(torch.rand(2, 3, 64, 64))
    assert not net.backbone.training


def test_any_grid_on_request():
    net = encoder()
    assert {tuple(level.shape) for level in net(torch.rand(2, 3, 64, 64))} == {(2, 8, 4, 4)}
    assert {tuple(level.shape) for level in net(torch.rand(2, 3, 48, 48), grid=3)} == {(2, 8, 3, 3)}


def test_pixels_are_normalised_inside():
    images = torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.1, 0.2, 0.3])
    normal = (images - mean[:, None, None]) / std[:, None, None]
    for inside, outside in zip(encoder()(images), encoder(mean=(0, 0, 0), std=(1, 1, 1))(normal), strict=True):
        torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-4)


def dilations(net):
    """Rate of each 3×3 convolution, per stage."""
    return [
        [c.dilation[0] for c in stage.modules() if isinstance(c, nn.Conv2d) and c.kernel_size == (3, 3)]
        for stage in net.net.encoder.stages
    ]


def test_lost_strides_become_dilation():
    """The last stage's three blocks by the multi-grid 1-2-4, times 2 or 4; see DeepLabv3."""
    assert dilations(backbone(RESNET)) == [[1], [1], [1, 1], [1, 1, 1]]
    assert dilations(backbone(RESNET, 16)) == [[1], [1], [1, 1], [2, 4, 8]]
    assert dilations(backbone(RESNET, 8)) == [[1], [1], [2, 2], [4, 8, 16]]


def test_dilation_leaves_the_weights_as_they_were():
    shapes = [{k: v.shape for k, v in backbone(RESNET, stride).state_dict().items()} for stride in (None, 16, 8)]
    assert shapes[0] == shapes[1] == shapes[2]


def test_faults_name_the_cure():
    with pytest.raises(RefsegError, match="leave it out for convnext"):
        backbone(CONVNEXT, 16)
    with pytest.raises(RefsegError, match="4 is not one of 8, 16, 32"):
        backbone(RESNET, 4)
    with pytest.raises(RefsegError, match="bert is no backbone; try resnet"):
        backbone({"model_type": "bert"})
    with pytest.raises(RefsegError, match="2 stages; three levels are needed"):
        backbone({**RESNET, "depths": [1, 1], "hidden_sizes": [4, 6]})
