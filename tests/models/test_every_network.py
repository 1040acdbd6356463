"""What every network of the registry promises, whichever it is: adding one adds a line to SETTINGS."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY
from transformers import AutoModel

from refseg.errors import RefsegError
from refseg.models.interface import Prediction, ReferringConfig, ReferringNetwork, TokenBatch
from refseg.models.registry import NETWORKS, build_network, find_network

SHARED: dict[str, Any] = {
    **{name: TINY[name] for name in ("backbone_config", "image_size", "grid", "vocabulary", "word_size", "width")},
    "dropout": 0.0,
    "freeze_backbone": False,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "shnet": {
        name: TINY[name] for name in ("fusion_layers", "fusion_heads", "fusion_ffn", "aspp_rates", "decoder_widths")
    },
    "rrn": {"text_width": 12},
    "cmsa": {"attention_width": 16},
    "step": {"text_width": 12, "seen_width": 10, "common_width": 8, "folds": 3},
    "brinet": {"relation_width": 8, "aspp_width": 8, "max_words": 8},
    "lscm": {"fused_width": 12, "mutan_heads": 2},
    "cmpc": {"fused_width": 12, "mutan_heads": 2},
    "efn": {},
    "busnet": {"reach": 2},
}
"""What each network needs beside SHARED to be small."""
COUNTS = {"rrn": 29_372_501, "cmsa": 40_613_368, "efn": 107_943_709}
"""Weights of the published network that are learned, but for its backbone, where its authors' code is known."""
NEVER_USED = {"efn": {"text_encoder.gru.backwards.weight_hh_l0"}}
"""Weights that the published network has and does not use; its docstrings say why."""
IDS = torch.tensor([[3, 4, 5, 9], [6, 7, 0, 0], [4, 0, 0, 0], [8, 2, 10, 0], [7, 6, 0, 0]])
HEADS = torch.tensor([[2, 0, 2, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
PHOTO_OF = torch.tensor([1, 0, 1, 1, 0])
OWN = [name for name, place in NETWORKS.items() if place.startswith("refseg.")]


def build(name: str, **changes: Any) -> ReferringNetwork:
    """A fresh network in float64 whose weights differ enough that its answers do, ready to answer."""
    torch.manual_seed(0)
    network = build_network({"model_type": name, **SHARED, **SETTINGS[name], **changes}).double().eval()
    for name, weight in network.named_parameters():
        if weight.ndim > 1 and "embedding" not in name:
            torch.nn.init.kaiming_normal_(weight)
    return network


@pytest.fixture(scope="module", params=OWN)
def network(request: pytest.FixtureRequest) -> ReferringNetwork:
    return build(request.param)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()


def sentences(config: ReferringConfig, rows: slice = slice(None), words: int = 4) -> TokenBatch:
    ids = IDS[rows, :words]
    return TokenBatch(ids, ids > 0, HEADS[rows, :words] if config.parses else None)


def logits_of(prediction: Prediction) -> dict[str, torch.Tensor]:
    return {"the mask": prediction.mask_logits, **prediction.auxiliary, **prediction.outlines}


def assert_same(first: Prediction, second: Prediction, **tolerance: float) -> None:
    for (name, ours), theirs in zip(logits_of(first).items(), logits_of(second).values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def test_every_network_has_its_line() -> None:
    assert set(SETTINGS) == set(OWN)


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_network_has_its_count_of_weights(name: str) -> None:
    network_class: Any = find_network(name)
    with torch.device("meta"):
        published = network_class(network_class.config_class.published())
    learned = {key: weight.numel() for key, weight in published.named_parameters() if weight.requires_grad}
    assert sum(size for key, size in learned.items() if ".backbone." not in key) == COUNTS[name]


def test_its_answer_has_the_side_that_its_config_says(network: ReferringNetwork, images: torch.Tensor) -> None:
    config = network.config
    with torch.no_grad():
        prediction = network(sentences(config), images=images, photo_of=PHOTO_OF)
    assert prediction.mask_logits.shape == (5, 1, config.output_side, config.output_side)
    for name, logits in logits_of(prediction).items():
        assert logits.shape[:2] == (5, 1) and logits.isfinite().all(), name


def test_larger_photographs_are_answered_on_a_larger_grid(network: ReferringNetwork) -> None:
    config = network.config
    larger = torch.rand(1, 3, 96, 96).double()
    with torch.no_grad():
        prediction = network(sentences(config), features=network.encode(larger, 6))
    assert prediction.mask_logits.shape == (5, 1, 6 * config.magnification, 6 * config.magnification)


def test_a_batch_is_its_sentences_one_by_one(network: ReferringNetwork, images: torch.Tensor) -> None:
    config = network.config
    with torch.no_grad():
        together = network(sentences(config), images=images, photo_of=PHOTO_OF)
        for row, photo in enumerate(PHOTO_OF.tolist()):
            words = int((IDS[row] > 0).sum())
            alone = network(sentences(config, slice(row, row + 1), words), images=images[photo : photo + 1])
            of_batch = {name: logits[row : row + 1] for name, logits in logits_of(together).items()}
            assert_same(alone, Prediction(of_batch.pop("the mask"), of_batch), rtol=1e-6, atol=1e-8)


def test_what_stands_behind_a_sentence_changes_nothing(network: ReferringNetwork, images: torch.Tensor) -> None:
    tokens = sentences(network.config)
    longer = TokenBatch(*(None if part is None else F.pad(part, (0, 3)) for part in tokens))
    garbage = longer._replace(ids=torch.where(longer.mask, longer.ids, 11))
    with torch.no_grad():
        expected = network(tokens, images=images, photo_of=PHOTO_OF)
        for padded in (longer, garbage):
            assert_same(network(padded, images=images, photo_of=PHOTO_OF), expected, rtol=1e-6, atol=1e-8)


def test_a_photograph_is_encoded_once(network: ReferringNetwork, images: torch.Tensor) -> None:
    tokens = sentences(network.config)
    with torch.no_grad():
        features = network.encode(images)
        assert all(len(feature) == 2 for feature in features)
        from_features = network(tokens, features=features, photo_of=PHOTO_OF)
        assert_same(from_features, network(tokens, images=images, photo_of=PHOTO_OF), rtol=0, atol=0)


def test_photograph_and_sentence_both_decide(network: ReferringNetwork, images: torch.Tensor) -> None:
    with torch.no_grad():
        first, second = (network(sentences(network.config), images=image[None]).mask_logits for image in images)
    assert all((one - other).abs().max() > 1e-6 for one, other in zip(first, second, strict=True))
    assert all((first[0] - other).abs().max() > 1e-6 for other in first[1:])


def test_gradients_reach_every_weight(network: ReferringNetwork) -> None:
    fresh = build(network.config.model_type).train()
    photographs = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)).double()
    prediction = fresh(sentences(fresh.config), images=photographs, photo_of=PHOTO_OF)
    torch.stack(
        [(logits * torch.randn_like(logits)).sum() for logits in logits_of(prediction).values()]
    ).sum().backward()
    learned = {name: weight for name, weight in fresh.named_parameters() if weight.requires_grad}
    still = {name for name, weight in learned.items() if weight.grad is None or not weight.grad.any()}
    assert still == NEVER_USED.get(fresh.config.model_type, set())
    assert [name for name, weight in learned.items() if not weight.grad.isfinite().all()] == []


def test_alignment_finds_a_map_and_words(network: ReferringNetwork, images: torch.Tensor) -> None:
    ids, mask, _ = sentences(network.config)
    with torch.no_grad():
        places = network.places(network.encode(images))
        words = network.text_encoder(ids, mask)
    assert places.shape[:2] == (2, network.config.width) and places.ndim == 4
    assert words.shape == (5, 4, network.text_encoder.width) and not words[~mask].any()
    assert network.text_encoder.embedding.weight.shape == (network.config.vocabulary, network.config.word_size)


def test_it_comes_back_as_it_was_saved(network: ReferringNetwork, images: torch.Tensor, tmp_path: Any) -> None:
    network.save_pretrained(tmp_path)
    tokens = sentences(network.config)
    for kind in (type(network), AutoModel):
        again = kind.from_pretrained(tmp_path).double()
        assert type(again) is type(network)
        assert again.config.to_dict() | {"_name_or_path": ""} == network.config.to_dict()
        assert_same(again(tokens, images=images[:1]), network(tokens, images=images[:1]), rtol=1e-6, atol=1e-8)


def test_it_answers_in_bfloat16(network: ReferringNetwork, images: torch.Tensor) -> None:
    single = build(network.config.model_type).float()
    tokens, images = sentences(network.config), images.float()
    with torch.no_grad():
        expected = single(tokens, images=images, photo_of=PHOTO_OF).mask_logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            coarse = single(tokens, images=images, photo_of=PHOTO_OF).mask_logits.float()
    assert coarse.isfinite().all()
    assert (coarse - expected).abs().mean() < 0.2 * expected.std()


def test_a_frozen_backbone_stays(network: ReferringNetwork) -> None:
    frozen = build(network.config.model_type, freeze_backbone=True, freeze_words=True)
    still = {name for name, weight in frozen.named_parameters() if not weight.requires_grad}
    backbone = {name for name, _ in frozen.named_parameters() if ".backbone." in name}
    constants = {name for name, weight in network.named_parameters() if not weight.requires_grad}
    assert still == backbone | constants | {"text_encoder.embedding.weight"}


def test_wrong_settings_and_a_missing_photograph_are_named(network: ReferringNetwork) -> None:
    config = network.config
    own = set(type(config).settings()) - set(ReferringConfig.settings())
    numbers = {name for name in own if type(getattr(config, name)) is int} | {"grid", "width", "vocabulary"}
    for name in sorted(numbers):
        with pytest.raises(RefsegError, match=f"{name} is -1; give a whole number from"):
            build(config.model_type, **{name: -1})
    with pytest.raises(RefsegError, match="give images, or the features"):
        network(sentences(config))


def test_the_paper_has_a_config_and_is_named(network: ReferringNetwork) -> None:
    config_class = network.config_class
    published = getattr(config_class, "published", getattr(config_class, "paper", None))
    assert published().image_size == 320
    assert published(vocabulary=7).vocabulary == 7
    assert find_network(network.config.model_type).paper.rpartition(" ")[2].isdigit()
