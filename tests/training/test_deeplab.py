"""DeepLabv3+ of the PyTorch port, written out here with few channels, against what its conversion computes."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config
from torch import nn
from transformers import AutoConfig, AutoModel

from refseg.cli import main
from refseg.errors import RefsegError
from refseg.models.shnet import SHNet, SHNetConfig
from refseg.training.backbones import load_backbone
from refseg.training.deeplab import config_of, convert_deeplab

PLANES, DEPTHS, STEM = (2, 3, 4, 5), (1, 2, 2, 3), 6


class Block(nn.Module):
    """The port's bottleneck; the stride is the 3×3 convolution's."""

    def __init__(self, inputs, planes, stride, dilation):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        if stride > 1 or inputs != 4 * planes:
            shortcut = nn.Conv2d(inputs, 4 * planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * planes))

    def forward(self, x):
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + (self.downsample(x) if hasattr(self, "downsample") else x))


class Port(nn.Module):
    """Three levels at output stride 16 or 8, with the multi-grid 1-2-4 in the last stage."""

    def __init__(self, output_stride=16):
        super().__init__()
        strides, rates = {16: ((1, 2, 2, 1), (1, 1, 1, 2)), 8: ((1, 2, 1, 1), (1, 1, 2, 4))}[output_stride]
        self.conv1 = nn.Conv2d(3, STEM, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        inputs = STEM
        for stage, (planes, depth, stride, rate) in enumerate(zip(PLANES, DEPTHS, strides, rates, strict=True)):
            grid = (1, 2, 4) if stage == 3 else (1,) * depth
            blocks = []
            for index in range(depth):
                blocks.append(Block(inputs, planes, stride if index == 0 else 1, rate * grid[index]))
                inputs = 4 * planes
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        second = self.layer2(self.layer1(F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)))
        third = self.layer3(second)
        return second, third, self.layer4(third)


def port(output_stride=16):
    torch.manual_seed(0)
    net = Port(output_stride).eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_()
    return net


def checkpoint(file, net, change=None, **content):
    """Saved as the port saves it: with its head, its optimizer's state and its score, one NumPy number."""
    state = {f"backbone.{name}": value for name, value in net.state_dict().items()}
    state |= {"aspp.aspp1.atrous_conv.weight": torch.zeros(1), "decoder.last_conv.8.bias": torch.zeros(21)}
    if change:
        change(state)
    plain = {"epoch": 46, "state_dict": state, "optimizer": {"param_groups": []}, "best_pred": np.float64(0.78)}
    torch.save({**plain, **content}, file, _use_new_zipfile_serialization=False)
    return file


@pytest.fixture
def file(tmp_path):
    return checkpoint(tmp_path / "deeplab-resnet.pth.tar", port())


@pytest.mark.parametrize("output_stride", [16, 8])
def test_a_converted_backbone_yields_the_ports_levels(output_stride, file, tmp_path):
    convert_deeplab(file, tmp_path / "out")
    backbone = AutoConfig.from_pretrained(tmp_path / "out").to_dict()
    model = SHNet(tiny_config(backbone_config=backbone, output_stride=output_stride))
    load_backbone(model, str(tmp_path / "out"))
    images = torch.rand(2, 3, 96, 64)
    levels = model.eval().image_encoder.backbone(images)
    expected = port(output_stride)(images)
    assert [tuple(level.shape[2:]) for level in levels] == [(12, 8)] + [(96 // output_stride, 64 // output_stride)] * 2
    for level, theirs in zip(levels, expected, strict=True):
        assert theirs.std() > 0.1
        torch.testing.assert_close(level, theirs, rtol=1e-5, atol=1e-5)


def test_the_command_writes_what_a_recipe_reads(file, tmp_path, capsys):
    assert main(["convert", "deeplab", str(file), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "1-2-2-3 blocks; in a recipe: backbone_weights: " in told.out and not told.err
    read = AutoModel.from_pretrained(tmp_path / "out")
    assert read.config.depths == list(DEPTHS) and read.config.hidden_sizes == [4 * planes for planes in PLANES]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def test_the_ports_own_sizes_are_resnet_101():
    shapes = {"conv1.weight": (64, 3, 7, 7), "bn1.weight": (64,)}
    for stage, (depth, width) in enumerate(zip((3, 4, 23, 3), (256, 512, 1024, 2048), strict=True), start=1):
        shapes |= {f"layer{stage}.{block}.conv3.weight": (width, width // 4, 1, 1) for block in range(depth)}
    config = config_of({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, "file")
    paper = SHNetConfig.paper().backbone_config
    for name in ("depths", "hidden_sizes", "embedding_size", "layer_type", "downsample_in_bottleneck"):
        assert getattr(config, name) == getattr(paper, name), name


def test_old_numpy_and_zipped_files_are_read(file, tmp_path):
    content = file.read_bytes()
    assert b"numpy._core.multiarray" in content or b"numpy.core.multiarray" in content
    file.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    convert_deeplab(file, tmp_path / "old")
    read = torch.load(file, weights_only=False)
    torch.save(read, tmp_path / "zipped.pth.tar")
    convert_deeplab(tmp_path / "zipped.pth.tar", tmp_path / "new")


def test_batch_norms_without_a_count_are_read(tmp_path):
    def forget(state):
        for name in [name for name in state if name.endswith("num_batches_tracked")]:
            del state[name]

    convert_deeplab(checkpoint(tmp_path / "file", port(), forget), tmp_path / "out")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def drop(*names):
    return lambda state: [state.pop(name) for name in names]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("backbone.conv1.weight"), r"lacks backbone\.conv1\.weight; give"),
        (drop("backbone.layer3.0.conv3.weight"), r"lacks backbone\.layer3\.0\.conv3\.weight; give"),
        (drop("backbone.layer3.1.bn2.running_var"), r"lacks backbone\.layer3\.1\.bn2\.running_var; give"),
        (drop(*(f"backbone.layer2.0.conv{n}.weight" for n in (1, 2)), "backbone.bn1.weight", "backbone.bn1.bias"),
         r"lacks backbone\.bn1\.weight, backbone\.bn1\.bias, .* and 1 more"),
        (lambda state: state.update({"backbone.fc.weight": torch.zeros(1)}), r"unknown backbone\.fc\.weight; give"),
        (lambda state: state.update({"module.x": torch.zeros(1)}), r"holds an unknown module\.x; give"),
        (lambda state: state.update({"backbone.bn1.bias": torch.zeros(9)}), "other shapes than a ResNet's"),
        (lambda state: state.clear(), r"lacks backbone\.conv1\.weight"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(change, message, tmp_path):
    with pytest.raises(RefsegError, match=message):
        convert_deeplab(checkpoint(tmp_path / "file", port(), change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pickle_that_wants_more_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bad = checkpoint(tmp_path / "bad.pth.tar", port(), epoch=Trap())
    assert main(["convert", "deeplab", str(bad), "--out", "out"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "is refused: it asks for posix.mkdir, and weights are tensors" in told
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"", "cannot be read|refused"),
        (b"PK\x03\x04 cut", "cannot be read|refused"),
        (b"a text", "cannot be read|refused"),
    ],
)
def test_files_that_are_no_checkpoint(content, message, tmp_path):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(RefsegError, match=message) as caught:
        convert_deeplab(tmp_path / "file", tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1], {"model": {}}, {"state_dict": {"x": 1}}, {"state_dict": torch.zeros(1)}])
def test_checkpoints_of_another_form(content, tmp_path):
    torch.save(content, tmp_path / "file")
    with pytest.raises(RefsegError, match="holds no state_dict of weights"):
        convert_deeplab(tmp_path / "file", tmp_path / "out")
