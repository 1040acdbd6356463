import pytest
import torch
from transformers import AutoConfig

from refseg.errors import RefsegError
from refseg.models.parts.backbone import build_backbone
from refseg.models.parts.unit_levels import build_unit_encoder
from refseg.models.shnet import SHNetConfig

RESNET = {"model_type": "resnet", "depths": [1] * 4, "hidden_sizes": [8, 12, 16, 20], "embedding_size": 4}
BACKBONES = [
    {"model_type": "mobilenet_v2", "depth_multiplier": 0.35, "output_stride": 16},
    RESNET,
    {"model_type": "swin", "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "image_size": 64},
]


def names(backbone):
    return backbone["model_type"]


@pytest.mark.parametrize("halved", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES, ids=names)
@torch.inference_mode()
def test_every_place_has_length_1_on_any_grid(backbone, halved):
    config = SHNetConfig(backbone_config=backbone, width=16, grid=4, image_size=64)
    encoder = build_unit_encoder(config, halved=halved).eval()
    for weight in encoder.parameters():
        if weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight)  # a fresh MobileNetV2 sees next to nothing
    photographs = torch.rand(2, 3, 64, 64)
    for grid, levels in ((4, encoder(photographs)), (6, encoder(photographs, 6))):
        assert [level.shape for level in levels] == [(2, 16, grid, grid)] * (4 if halved else 3)
        for level in levels:
            torch.testing.assert_close(level.norm(dim=1), torch.ones(2, grid, grid))


@pytest.mark.parametrize("backbone", BACKBONES, ids=names)
@torch.inference_mode()
def test_the_fourth_level_lies_in_front_of_the_three(backbone):
    def build(levels):
        torch.manual_seed(0)
        return build_backbone(AutoConfig.for_model(**backbone), None, levels).eval()

    three, four = build(3), build(4)
    photographs = torch.rand(1, 3, 64, 64)
    maps = four(photographs)
    assert tuple(level.shape[1] for level in maps) == four.channels and four.channels[1:] == three.channels
    assert maps[0].shape[2:] == (16, 16)
    if backbone["model_type"] != "swin":  # which normalises what it hands out
        four.load_state_dict(three.state_dict())
    for ours, theirs in zip(maps[1:], three(photographs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_detector_has_no_fourth_level():
    with pytest.raises(RefsegError, match="nanodet_plus yields three levels and four are needed; try resnet"):
        build_backbone(AutoConfig.for_model("nanodet_plus"), None, 4)
