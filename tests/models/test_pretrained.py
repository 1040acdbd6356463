"""Other models behind the same call, tiny and random: what is asked of them and what becomes of their answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refseg.checkpoints import OTHER_TYPES
from refseg.engines.torch import TorchEngine
from refseg.errors import RefsegError
from refseg.models.pretrained import CONFIDENCE, KINDS, unite
from refseg.photo import read_photo
from refseg.segmenter import Segmenter, load
from refseg.transforms import to_photograph, to_square

PHOTO = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
EXPRESSIONS = ["red bag", "the cat", "a" * 90]
SIDE = 32


def save_tokenizer(folder: Path) -> None:
    """A byte-pair tokenizer of single letters; its last two tokens start and end a sentence, as CLIP's do."""
    from transformers import CLIPTokenizer

    letters = [chr(ord("a") + place) for place in range(26)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[]).save_pretrained(folder)


TEXT = {
    "vocab_size": 54,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "bos_token_id": 52,
    "eos_token_id": 53,
    "pad_token_id": 53,
    "projection_dim": 16,
}


@pytest.fixture(scope="module")
def clipseg_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPSegConfig(
        text_config=TEXT,
        vision_config={**vision, "image_size": SIDE, "patch_size": 8},
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    folder = tmp_path_factory.mktemp("clipseg")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = CLIPSegForImageSegmentation(config)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        net.clip.text_projection.weight.data *= 20  # answers differ between expressions
    net.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def clipseg(clipseg_folder: Path) -> Segmenter:
    return load(clipseg_folder, device="cpu")


@pytest.fixture(scope="module")
def sam3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    modeling = pytest.importorskip("transformers.models.sam3.modeling_sam3")
    from transformers import Sam3Config

    part = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 56,
        "pretrain_image_size": 56,
        "window_size": 2,
        "global_attn_indexes": [0],
    }
    config = Sam3Config(
        vision_config={
            "backbone_config": backbone,
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={**TEXT, "model_type": "clip_text_model"},
        geometry_encoder_config=part,
        detr_encoder_config=part,
        detr_decoder_config={**part, "num_queries": 5},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    folder = tmp_path_factory.mktemp("sam3")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = modeling.Sam3Model(config)
    net.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def sam3(sam3_folder: Path) -> Segmenter:
    return load(sam3_folder, device="cpu")


def network_of(segmenter: Segmenter) -> Any:
    """What PyTorch computes behind it."""
    assert isinstance(segmenter.engine, TorchEngine)
    return segmenter.engine.network


def test_clipseg_answers_as_transformers_does(clipseg: Segmenter) -> None:
    """The whole model's forward on the same pixels and tokens, one expression at a time."""
    network = network_of(clipseg)
    pixels = (torch.from_numpy(to_square(read_photo(PHOTO), SIDE)[None]) - network.mean) / network.std
    found = clipseg.mask_logits(clipseg.encode(PHOTO), EXPRESSIONS)
    assert found.shape == (3, 1, SIDE, SIDE)
    for expression, logits in zip(EXPRESSIONS, found, strict=True):
        tokens = clipseg.tokenizer.tokenizer(expression, truncation=True, max_length=12, return_tensors="pt")
        with torch.no_grad():
            expected = network.net(pixel_values=pixels, **tokens).logits
        np.testing.assert_allclose(logits[0], expected.view(SIDE, SIDE), rtol=1e-4, atol=1e-4)


def test_clipseg_s_mask_is_its_logits_resized_and_decided(clipseg: Segmenter) -> None:
    encoded = clipseg.encode(PHOTO)
    answers = clipseg.segment(encoded, EXPRESSIONS)
    probabilities = to_photograph(clipseg.mask_logits(encoded, EXPRESSIONS), (50, 90))
    assert len({answer.mask.tobytes() for answer in answers}) > 1
    for answer, probability in zip(answers, probabilities, strict=True):
        assert 0 < answer.mask.mean() < 1
        np.testing.assert_array_equal(answer.mask, probability > 0.5)
        assert answer.score == pytest.approx(float(probability[probability > 0.5].mean()))
    assert [answer.truncated for answer in answers] == [False, False, True]
    assert [answer.unknown_words for answer in answers] == [(), (), ()]


def test_clipseg_sees_the_photograph_once(clipseg: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    look = network_of(clipseg).net.clip.vision_model.forward
    monkeypatch.setattr(
        network_of(clipseg).net.clip.vision_model,
        "forward",
        lambda pixels, **options: seen.append(pixels) or look(pixels, **options),
    )
    clipseg(PHOTO, EXPRESSIONS)
    assert len(seen) == 1
    white = clipseg.encode(np.full((8, 8, 3), 255, dtype=np.uint8)) and seen[1]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    torch.testing.assert_close(white[0, :, 0, 0], torch.tensor([(1 - m) / s for m, s in zip(mean, std, strict=True)]))


def test_statistics_come_with_the_checkpoint(clipseg_folder: Path, tmp_path: Path) -> None:
    for file in clipseg_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    record = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(record))
    model = network_of(load(tmp_path, device="cpu"))
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert model.std.flatten().tolist() == [1, 2, 3]


def test_the_union_of_confident_instances() -> None:
    """By hand: instances 0 and 2 are meant, 1 is not, though its mask is everywhere."""
    mask_logits = torch.tensor([[[3.0, -1.0]], [[9.0, 9.0]], [[-2.0, -4.0]]])
    union, best = unite(mask_logits, torch.tensor([0.6, CONFIDENCE, 0.9]))
    assert union.tolist() == [[3.0, -1.0]] and best == pytest.approx(0.9)
    nothing, none = unite(mask_logits, torch.tensor([0.1, 0.2, 0.3]))
    assert (nothing < -10).all() and none == 0.0


def test_sam3_answers_with_the_union_and_the_best_instance_s_score(
    sam3: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its network is asked about one expression at a time, on a photograph that it saw once."""
    looked, asked = [], []
    net = network_of(sam3).net
    look, ask = net.vision_encoder.forward, net.forward
    monkeypatch.setattr(net.vision_encoder, "forward", lambda pixels: looked.append(pixels) or look(pixels))

    def confident(**inputs):
        found = ask(**inputs)
        asked.append(found)
        found.presence_logits = torch.full_like(found.presence_logits, 9.0)
        found.pred_logits = torch.tensor([[-9.0, 1.0, -9.0, 2.0, -9.0]])
        return found

    monkeypatch.setattr(net, "forward", confident)
    answers = sam3(PHOTO, ["red bag", "the cat"])
    assert len(looked) == 1 and len(asked) == 2
    assert torch.equal(looked[0], (torch.from_numpy(to_square(read_photo(PHOTO), 56)[None]) - 0.5) / 0.5)
    for answer, found in zip(answers, asked, strict=True):
        union = torch.maximum(found.pred_masks[0, 1], found.pred_masks[0, 3])
        expected = to_photograph(union[None, None].numpy(), (50, 90))[0] > 0.5
        assert expected.any()
        np.testing.assert_array_equal(answer.mask, expected)
        assert answer.score == pytest.approx(float(torch.tensor([2.0, 9.0]).sigmoid().prod()))


def test_sam3_that_is_sure_of_nothing_answers_with_nothing(sam3: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = network_of(sam3).net.forward

    def unsure(**inputs):
        found = ask(**inputs)
        found.pred_logits = torch.full_like(found.pred_logits, -9.0)
        return found

    monkeypatch.setattr(network_of(sam3).net, "forward", unsure)
    answer = sam3(PHOTO, "red bag")
    assert not answer.mask.any() and answer.score == 0.0


def test_sam3_s_published_checkpoint_holds_a_tracker_that_is_passed_over(
    sam3: Segmenter, sam3_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    config = json.loads((sam3_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": config}))
    weights = {f"detector_model.{name}": value for name, value in load_file(sam3_folder / "model.safetensors").items()}
    weights["tracker_model.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tmp_path)
    other = load(tmp_path, device="cpu")
    assert other.settings.model_type == "sam3" and other.image_size == 56
    for first, second in zip(sam3.encode(PHOTO).features, other.encode(PHOTO).features, strict=True):
        assert torch.equal(first, second)


def test_they_are_evaluated_and_described_as_shnet_is(clipseg: Segmenter, tmp_path: Path) -> None:
    from PIL import Image

    from refseg.data.table import Row
    from refseg.evaluation.evaluate import evaluate
    from refseg.evaluation.protocols import find_protocol
    from refseg.masks import encode_mask

    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    mask = np.zeros((50, 90), dtype=bool)
    mask[:20] = True
    row = Row(tmp_path / "photo.png", 1, 50, 90, "the cat", encode_mask(mask))
    for name in ("native", "shnet"):
        report = evaluate(clipseg, [row], progress=False, protocol=find_protocol(name))
        assert report.image_size == SIDE and 0 <= report.overall.overall_iou <= 1
    settings = clipseg.settings
    assert (settings.model_type, settings.image_size, clipseg.threshold) == ("clipseg", SIDE, 0.5)
    assert clipseg.checkpoint.parameters > 1000 and len(clipseg.tokenizer) == 54
    assert clipseg.tokenizer([]).ids.shape == (0, 12)


def test_what_they_cannot_do_is_refused(clipseg: Segmenter, clipseg_folder: Path, tmp_path: Path) -> None:
    assert set(KINDS) == set(OTHER_TYPES)
    with pytest.raises(RefsegError, match="leave engine and precision out"):
        load(clipseg_folder, device="cpu", precision="bfloat16")
    with pytest.raises(RefsegError, match="fusion: sfm"):
        clipseg.word_attention(clipseg.encode(PHOTO), "the cat")
    with pytest.raises(RefsegError, match="save it with transformers"):
        clipseg.save_pretrained(tmp_path)


def test_a_damaged_one_is_refused(clipseg_folder: Path, tmp_path: Path) -> None:
    for file in clipseg_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(RefsegError, match="no usable clipseg"):
        load(tmp_path, device="cpu")
