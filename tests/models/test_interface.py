"""What every network promises, on a second one that is not SHNet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import SCENES, train, write_recipe
from tiny_network import SETTINGS, Product, ProductConfig
from transformers import AutoConfig, AutoModel

import refseg
from refseg.data.sources import load_rows
from refseg.errors import RefsegError
from refseg.models.interface import ReferringConfig, TokenBatch, per_expression
from refseg.models.registry import NETWORKS, build_network, find_network, network_of
from refseg.models.shnet import SHNet

IDS = torch.tensor([[3, 4, 5], [6, 7, 0], [4, 0, 0]])
TOKENS = TokenBatch(IDS, IDS > 0)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network() -> Product:
    torch.manual_seed(0)
    built = build_network(SETTINGS)
    assert type(built) is Product
    return built.eval()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps with all losses."""
    return train(
        write_recipe(tmp_path_factory.mktemp("product"), 4, network=SETTINGS, model={"freeze_backbone": False})
    )


def test_a_network_is_found_by_its_model_type() -> None:
    assert find_network("product") is Product and network_of({}) is SHNet and network_of(SETTINGS) is Product
    assert isinstance(build_network(SETTINGS).config, ProductConfig)
    with pytest.raises(RefsegError, match=rf"no network of model_type 'shnett'; one of: .*{sorted(NETWORKS)[-1]}"):
        find_network("shnett")


def test_settings_are_those_of_all_networks_and_its_own() -> None:
    shared = set(ReferringConfig.settings())
    assert {"backbone_config", "grid", "width", "dropout", "threshold"} <= shared
    assert not shared & {"model_type", "magnification", "parses", "common", "fusion"}
    assert set(ProductConfig.settings()) == shared | {"common"}
    assert "fusion" in SHNet.config_class.settings()


def test_checks_are_shared_and_its_own() -> None:
    for changes, cure in (
        ({"grid": 1}, "grid is 1"),
        ({"common": 0}, "common is 0"),
        ({"pixel_std": [1]}, "pixel_std"),
    ):
        with pytest.raises(RefsegError, match=cure):
            build_network({**SETTINGS, **changes})


def test_output_side_is_what_a_network_gives(network: Product, images: torch.Tensor) -> None:
    assert network(TOKENS, images=images[:1]).mask_logits.shape == (3, 1, 8, 8)
    assert network.config.output_side == 8
    assert SHNet.config_class(grid=8).output_side == 32


def test_features_stand_for_their_photographs(network: Product, images: torch.Tensor) -> None:
    photo_of = torch.tensor([1, 0, 1])
    features = network.encode(images)
    expected = network(TOKENS, images=images, photo_of=photo_of)
    answered = network(TOKENS, features=features, photo_of=photo_of)
    assert torch.equal(answered.mask_logits, expected.mask_logits)
    assert torch.equal(answered.auxiliary["any sentence"][0], answered.auxiliary["any sentence"][2])
    for number, photo in enumerate(photo_of.tolist()):
        single = TokenBatch(IDS[number : number + 1], IDS[number : number + 1] > 0)
        alone = network(single, images=images[photo : photo + 1]).mask_logits
        torch.testing.assert_close(alone, expected.mask_logits[number : number + 1])
    with pytest.raises(RefsegError, match="give images, or the features"):
        network(TOKENS)


def test_a_feature_of_any_rank_is_paired() -> None:
    assert per_expression(torch.tensor([5.0]), None, 3).tolist() == [5.0] * 3
    assert per_expression(torch.tensor([[1], [2]]), torch.tensor([1, 1, 0]), 3).tolist() == [[2], [2], [1]]


def test_a_recipe_trains_it(trained: Path) -> None:
    """Every weight moves: those of the mask, that of the map on the way, and both encoders'."""
    recipe = trained.parent / "recipe.yaml"
    early = train(recipe, "training.max_steps=1", f"training.output={trained.parent / 'early'}")
    before, after = (Product.from_pretrained(folder) for folder in (early, trained))
    assert after.config.common == SETTINGS["common"] and after.config.vocabulary > 12
    still = [
        name
        for (name, first), last in zip(before.named_parameters(), after.parameters(), strict=True)
        if torch.equal(first, last)
    ]
    assert still == []


def test_training_goes_on_from_its_checkpoint(trained: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, 1, network={"model_type": "product"}, training={"learning_rate": 1e-6})
    recipe.write_text(recipe.read_text() + f"start: {trained}\n")
    before, after = (Product.from_pretrained(folder) for folder in (trained, train(recipe)))
    assert after.config.common == SETTINGS["common"]
    torch.testing.assert_close(after.of_places.weight, before.of_places.weight, rtol=0, atol=1e-4)


def test_its_checkpoint_is_loaded_evaluated_and_saved(trained: Path, tmp_path: Path) -> None:
    from refseg.evaluation.evaluate import evaluate

    segmenter = refseg.load(trained, device="cpu")
    rows = load_rows(SCENES, per_photo=2)
    report = evaluate(segmenter, rows, progress=False)
    assert report.overall.count == len(rows)
    segmenter.save_pretrained(tmp_path / "shared", report=report)
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "Product (Nobody, nowhere) with a mobilenet_v2 encoder" in card and "- product" in card
    again = refseg.load(tmp_path / "shared", device="cpu")
    photo = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    np.testing.assert_array_equal(again(photo, "the red circle").mask, segmenter(photo, "the red circle").mask)
    with pytest.raises(RefsegError, match="fuses without attention"):
        segmenter.word_attention(segmenter.encode(photo), "the red circle")


def test_transformers_knows_it_and_no_variant_takes_its_place(trained: Path) -> None:
    class Variant(Product):
        """Inherits its config."""

    assert Variant.config_class is ProductConfig
    assert type(AutoConfig.from_pretrained(trained)) is ProductConfig
    assert type(AutoModel.from_pretrained(trained)) is Product


def test_a_recipe_that_misspells_its_settings_is_refused(tmp_path: Path) -> None:
    for model, cure in (
        ({**SETTINGS, "model_type": "shnett"}, "no network of model_type 'shnett'"),
        ({**SETTINGS, "comon": 3}, "did you mean common"),
        ({**SETTINGS, "fusion": "sfm"}, "unknown recipe key model.fusion"),
    ):
        with pytest.raises(RefsegError, match=cure):
            train(write_recipe(tmp_path, 1, network=model))
