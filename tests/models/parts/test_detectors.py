import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_config

from refseg.errors import RefsegError
from refseg.models.parts.backbone import build_backbone
from refseg.models.parts.detectors import CLASSES, DetectorLevels, NanoDetConfig, PicoDetConfig
from refseg.models.shnet import SHNet
from refseg.training.backbones import load_backbone, load_detector, name_scores
from refseg.words import WordTokenizer

CONFIGS = {"nanodet_plus": NanoDetConfig, "picodet": PicoDetConfig}
WIDTHS = {"nanodet_plus": ((176, 352, 704), 128), "picodet": ((96, 192, 384), 96)}
both = pytest.mark.parametrize("kind", CONFIGS)
BACKBONE_ALONE, NECK_AND_SCORES, ALL = ("backbone",), ("neck", "scores"), ("backbone", "neck", "scores")


def detector(kind, maps=ALL):
    torch.manual_seed(0)
    levels = build_backbone(CONFIGS[kind](maps=list(maps)), None).eval()
    assert isinstance(levels, DetectorLevels)
    return levels


def loud(levels):
    """Gives random weights signals that do not die away over a hundred layers."""
    for module in levels.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return levels


def network(kind, maps=ALL):
    return SHNet(tiny_config(backbone_config={"model_type": kind, "maps": list(maps)}))


def weights_file(levels, folder):
    """As the published files are: half precision, the boxes' rows after those of the classes."""
    state = {}
    for name, tensor in levels.net.state_dict().items():
        boxes = torch.ones(32, *tensor.shape[1:]) if len(tensor) == len(CLASSES) else tensor[:0]
        state[name] = torch.cat([tensor, boxes]).half()
    save_file(state, folder / "model.safetensors")
    return folder


@both
@pytest.mark.parametrize("side", [64, 96, 416])
@pytest.mark.parametrize("maps", [ALL, BACKBONE_ALONE, NECK_AND_SCORES, ("neck",), ("scores",)])
def test_levels_of_declared_channels_at_strides_8_16_and_32(kind, maps, side):
    levels = detector(kind, maps)
    with torch.inference_mode():
        seen = levels(torch.rand(2, 3, side, side))
    assert [tuple(m.shape) for m in seen] == [
        (2, c, side // s, side // s) for c, s in zip(levels.channels, (8, 16, 32), strict=True)
    ]
    deep, neck = WIDTHS[kind]
    extra = ("neck" in maps) * neck + ("scores" in maps) * 80
    shallow = deep if "backbone" in maps else (0, 0, 0)
    assert levels.channels == (shallow[0] + extra, shallow[1] + extra, shallow[2] + extra + ("neck" in maps) * neck)


def test_the_networks_have_the_published_sizes_without_the_boxes():
    published = {"nanodet_plus": (110, 2_461_080), "picodet": (133, 983_891)}
    for kind, (convolutions, parameters) in published.items():
        levels = detector(kind)
        boxes = 4 * 32 * (WIDTHS[kind][1] + 1)
        assert sum(isinstance(module, torch.nn.Conv2d) for module in levels.modules()) == convolutions
        assert sum(parameter.numel() for parameter in levels.parameters()) == parameters - boxes


@both
def test_only_what_the_maps_need_is_built(kind):
    parts = {maps: set(dict(detector(kind, maps).net.named_children())) for maps in (ALL, NECK_AND_SCORES)}
    assert {name.split(".")[0] for name in detector(kind, BACKBONE_ALONE).net.state_dict()} == {"backbone"}
    assert len({name.split(".")[0] for name in detector(kind, ("neck",)).net.state_dict()}) == 2
    assert parts[ALL] == parts[NECK_AND_SCORES]


@both
def test_the_levels_hold_backbone_neck_and_scores_in_this_order(kind):
    levels = loud(detector(kind))
    pixels = torch.rand(1, 3, 96, 96)
    alone = [loud(detector(kind, maps)) for maps in (("backbone",), ("neck",), ("scores",))]
    for single in alone:
        state = levels.net.state_dict()
        single.net.load_state_dict({name: state[name] for name in single.net.state_dict()})
    with torch.inference_mode():
        parts = zip(*(single(pixels) for single in alone), strict=True)
        for together, part in zip(levels(pixels), parts, strict=True):
            torch.testing.assert_close(together, torch.cat(part, dim=1))
            assert 0 <= part[-1].min() < part[-1].max() <= 1


@both
def test_stride_64_joins_the_last_level_cell_by_cell(kind):
    """At 96 px stride 32 has 3 cells a side and stride 64 has 2: two cells, then one, see each of them."""
    pixels = torch.rand(1, 3, 96, 96)
    rows = torch.tensor([0, 0, 1])
    neck, scores = loud(detector(kind, ("neck",))), loud(detector(kind, ("scores",)))
    with torch.inference_mode():
        sixth = neck.net(pixels).neck[3]
        assert sixth.shape[-2:] == (2, 2)
        assert torch.equal(neck(pixels)[2][:, -sixth.shape[1] :], sixth[:, :, rows][..., rows])
        *_, fifth, sixth = scores.net(pixels).scores
        assert torch.equal(scores(pixels)[2], torch.maximum(fifth, sixth[:, :, rows][..., rows]))


def test_nanodet_sees_bgr_and_picodet_rgb():
    pixels = torch.rand(1, 3, 64, 64)
    for kind, order in (("nanodet_plus", (2, 1, 0)), ("picodet", (0, 1, 2))):
        backbone = loud(detector(kind, BACKBONE_ALONE)).net.backbone
        seen = []
        backbone.conv1.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        build = detector(kind, BACKBONE_ALONE)
        build.net.backbone = backbone
        build(pixels)
        assert torch.equal(seen[0], pixels[:, order])


@both
def test_gradients_reach_every_weight(kind):
    levels = loud(detector(kind))
    sum((level * torch.randn_like(level)).sum() for level in levels(torch.rand(2, 3, 128, 128))).backward()
    assert [name for name, p in levels.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@both
@pytest.mark.parametrize("maps", [ALL, BACKBONE_ALONE])
def test_weights_load_into_what_the_maps_need(kind, maps, tmp_path):
    published = loud(detector(kind))
    weights_file(published, tmp_path)
    model = network(kind, maps)
    load_backbone(model, str(tmp_path))
    loaded = model.image_encoder.backbone.net.state_dict()
    expected = published.net.state_dict()
    assert loaded and all(torch.equal(tensor, expected[name].half().float()) for name, tensor in loaded.items())
    assert set(loaded) == set(expected) or maps == BACKBONE_ALONE


@both
def test_a_network_with_a_detector_survives_its_folder(kind, tmp_path):
    model = network(kind, NECK_AND_SCORES).eval()
    model.save_pretrained(tmp_path)
    again = SHNet.from_pretrained(tmp_path).eval()
    assert list(again.config.backbone_config.maps) == list(NECK_AND_SCORES)
    state = again.state_dict()
    assert all(torch.equal(tensor, state.pop(name)) for name, tensor in model.state_dict().items()) and not state
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        for before, after in zip(model.encode(images), again.encode(images), strict=True):
            torch.testing.assert_close(before, after)


@both
def test_tracing_gives_the_same_on_another_photograph(kind):
    levels = loud(detector(kind))
    with torch.inference_mode():
        traced = torch.export.export(levels, (torch.rand(1, 3, 96, 96),)).module()
        other = torch.rand(1, 3, 96, 96)
        for ours, theirs in zip(levels(other), traced(other), strict=True):
            torch.testing.assert_close(ours, theirs)


@both
def test_scores_start_as_the_vectors_of_their_names(kind):
    """One turn for all levels keeps the angles between names; every other channel stays as it was."""
    tokenizer = WordTokenizer.from_expressions(CLASSES)
    backbone = {"model_type": kind, "maps": ["backbone", "scores"]}
    model = SHNet(tiny_config(backbone_config=backbone, vocabulary=len(tokenizer), word_size=6))
    before = [project[0].weight.clone() for project in model.image_encoder.project]
    name_scores(model, tokenizer)
    words = model.text_encoder.embedding.weight.detach()
    bus, fire, hydrant = (words[tokenizer.vocabulary[word]] for word in ("bus", "fire", "hydrant"))
    shift = bus - (fire + hydrant) / 2
    for project, old in zip(model.image_encoder.project, before, strict=True):
        weight = project[0].weight.detach()
        assert torch.equal(weight[:, :-80], old[:, :-80])
        centre = weight[:, -80:, 1, 1]
        turned = centre[:, CLASSES.index("bus")] - centre[:, CLASSES.index("fire hydrant")]
        torch.testing.assert_close(turned.norm(), shift.norm())
        assert weight[:, -80:].count_nonzero() == centre.count_nonzero() > 0
        assert torch.equal(centre, model.image_encoder.project[0][0].weight[:, -80:, 1, 1])


def test_a_backbone_without_scores_is_left_as_it_is():
    for model in (network("picodet", BACKBONE_ALONE), SHNet(tiny_config())):
        before = [project[0].weight.clone() for project in model.image_encoder.project]
        name_scores(model, WordTokenizer.from_expressions(CLASSES))
        assert all(torch.equal(p[0].weight, old) for p, old in zip(model.image_encoder.project, before, strict=True))


def test_faults_name_the_cure(tmp_path):
    for maps in ([], ["boxes"]):
        with pytest.raises(RefsegError, match="give one or more of: backbone, neck, scores"):
            NanoDetConfig(maps=maps)
    with pytest.raises(RefsegError, match="leave it out for picodet"):
        build_backbone(PicoDetConfig(), 16)
    with pytest.raises(RefsegError, match="cannot be read"):
        load_detector(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RefsegError, match="cannot be read"):
        load_detector(tmp_path)
    weights_file(detector("picodet"), tmp_path)
    with pytest.raises(RefsegError, match=r"backbone_weights: .* does not fit the backbone"):
        load_backbone(network("nanodet_plus"), str(tmp_path))
