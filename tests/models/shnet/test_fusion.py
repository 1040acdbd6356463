import math

import pytest
import torch
import torch.nn.functional as F

from refseg.models.parts.text_encoder import average_word, last_word
from refseg.models.shnet.fusion import SFM, ConcatFusion, TileFusion, attention

B, C, H, W, T = 2, 8, 3, 5, 4
MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])


def sfm(**changes):
    torch.manual_seed(0)
    module = SFM(**{"width": C, "heads": 2, "layers": 2, "ffn": 12, "dropout": 0.3, **changes}).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


@pytest.fixture
def level():
    return torch.randn(B, C, H, W, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def words():
    return torch.randn(B, T, C, generator=torch.Generator().manual_seed(2)) * MASK.unsqueeze(-1)


@pytest.mark.parametrize("fusion", [sfm(), ConcatFusion(C).eval()], ids=["sfm", "concat"])
@pytest.mark.parametrize("training", [True, False])
def test_shapes(fusion, level, words, training):
    pixels, fused = fusion.train(training)(level, words, MASK)
    assert pixels.shape == (B, C, H, W)
    assert fused.shape == (B, T, C)
    assert (fused[~MASK] == 0).all()


@pytest.mark.parametrize("fusion", [sfm(), ConcatFusion(C).eval()], ids=["sfm", "concat"])
def test_padded_words_change_nothing(fusion, level, words):
    pixels, fused = fusion(level[1:], words[1:, :2], MASK[1:, :2])
    garbage = torch.where(MASK.unsqueeze(-1), words, 1e3)
    for padded in (words, garbage):
        padded_pixels, padded_words = fusion(level[1:], padded[1:], MASK[1:])
        torch.testing.assert_close(padded_pixels, pixels, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(padded_words[:, :2], fused, rtol=1e-5, atol=1e-5)


def test_words_reach_every_pixel_and_pixels_every_word(level, words):
    fusion = sfm(layers=1)
    level.requires_grad_(), words.requires_grad_()
    pixels, fused = fusion(level, words, MASK)
    weights = torch.randn(C, generator=torch.Generator().manual_seed(3))
    for y in range(H):
        for x in range(W):
            (of_words,) = torch.autograd.grad((pixels[1, :, y, x] * weights).sum(), words, retain_graph=True)
            assert ((of_words[1].abs().sum(dim=1) > 1e-6) == MASK[1]).all()
            assert (of_words[0] == 0).all()
    (of_level,) = torch.autograd.grad((fused[1, 0] * weights).sum(), level)
    assert (of_level[1].abs().sum(dim=0) > 1e-6).all()


@pytest.mark.parametrize("position", [True, False])
def test_place_matters_only_with_position(level, words, position):
    fusion = sfm(position=position)
    order = torch.randperm(H * W, generator=torch.Generator().manual_seed(4))

    def shuffled(pixels):
        return pixels.flatten(2)[:, :, order].unflatten(2, (H, W))

    pixels, fused = fusion(level, words, MASK)
    moved_pixels, moved_words = fusion(shuffled(level), words, MASK)
    same = torch.allclose(moved_pixels, shuffled(pixels), atol=1e-5) and torch.allclose(moved_words, fused, atol=1e-5)
    assert same is not position


@pytest.mark.parametrize("position", [True, False])
def test_word_order_matters_only_with_position(level, words, position):
    fusion = sfm(position=position)
    pixels, _ = fusion(level[:1], words[:1], MASK[:1])
    turned, _ = fusion(level[:1], words[:1].flip(1), MASK[:1])
    assert torch.allclose(turned, pixels, atol=1e-5) is not position


def test_the_baseline_reads_the_last_word_alone(level, words):
    fusion = ConcatFusion(C).eval()
    pixels, _ = fusion(level, words, MASK)
    early, late = words.clone(), words.clone()
    early[1, 0] += 1
    late[1, 1] += 1
    assert torch.equal(fusion(level, early, MASK)[0], pixels)
    assert not torch.allclose(fusion(level, late, MASK)[0], pixels)


def test_the_papers_baseline_is_the_level_and_the_tiled_sentence(level, words):
    pixels, fused = TileFusion()(level, words, MASK)
    assert pixels.shape == (B, 2 * C, H, W) and torch.equal(fused, words)
    assert torch.equal(pixels[:, :C], level)
    assert torch.equal(pixels[1, C:], words[1, 1][:, None, None].expand(C, H, W))


def test_without_the_first_norm_the_layers_read_what_came_in(level, words):
    fusion, seen = sfm(norm=False), []
    fusion.layers[0].register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    fusion(level, words, MASK)
    assert torch.equal(seen[0], torch.cat([level.flatten(2).mT, words], dim=1))
    assert {name.split(".")[0] for name, _ in fusion.named_parameters()} == {"layers", "final_norm"}


def test_shares_of_attention_are_dropped_in_training_alone(level, words):
    fusion = sfm(dropout=0.0, attention_dropout=0.5)
    assert torch.equal(fusion(level, words, MASK)[0], fusion(level, words, MASK)[0])
    fusion.train()
    assert not torch.equal(fusion(level, words, MASK)[0], fusion(level, words, MASK)[0])


def test_counted_places_are_those_that_the_sheet_writes_out():
    """Each number by its formula, one after the other: column in the first half of the channels, row in the second."""
    fusion, like = sfm(counted=True), torch.zeros(C)

    def code(place, channel, width):
        angle = place * 10000 ** (-2 * (channel // 2) / width)
        return math.cos(angle) if channel % 2 else math.sin(angle)

    pixels, words = fusion.place_pixels(H, W, like), fusion.place_words(T, like)
    for row in range(H):
        for column in range(W):
            for channel in range(C // 2):
                here = pixels[row * W + column]
                assert here[channel] == pytest.approx(code(column, channel, C // 2), abs=1e-6)
                assert here[C // 2 + channel] == pytest.approx(code(row, channel, C // 2), abs=1e-6)
    for place in range(T):
        assert words[place].tolist() == pytest.approx([code(place, c, C) for c in range(C)], abs=1e-6)


def test_sentence_features():
    words = torch.tensor([[[1.0], [3.0], [8.0]], [[5.0], [7.0], [9.0]]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert average_word(words, mask).tolist() == [[4.0], [5.0]]
    assert last_word(words, mask).tolist() == [[8.0], [5.0]]


def test_no_word_at_all_divides_by_nothing():
    words = torch.zeros(1, 3, 2)
    assert average_word(words, torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0.0, 0.0]]
    assert last_word(words, torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0.0, 0.0]]


def test_attention_is_what_the_layers_attend_to(level, words, monkeypatch):
    """Against the layers' own attention, handed one-hot values, which it turns into its weights."""
    fusion, weights, attend = sfm(), [], F.scaled_dot_product_attention

    def watched(query, key, value, attn_mask, dropout_p):
        one_hot = torch.eye(key.shape[2]).expand(B, query.shape[1], -1, -1)
        assert dropout_p == 0
        weights.append(attend(query, key, one_hot, attn_mask=attn_mask).mean(dim=1))  # (B, N, N)
        return attend(query, key, value, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    before = fusion(level, words, MASK)[0]
    shares = attention(fusion, level, words, MASK)
    torch.testing.assert_close(shares, torch.stack(weights[:2]))
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(2, B, H * W + T))
    to_words = shares[..., H * W :].movedim(-1, 2)
    assert (to_words[:, ~MASK] == 0).all() and (to_words[:, MASK] > 0).all()
    weights.clear()
    torch.testing.assert_close(fusion(level, words, MASK)[0], before)  # nothing stays behind
    assert all(not layer.query_key._forward_hooks for layer in fusion.layers)
