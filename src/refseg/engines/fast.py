"""The inference form of SHNet on a CPU: the same answers with less arithmetic. `fastest_form` makes it.

Read `models/shnet/network.py` first; this file follows its five statements. What is saved, each exact but for rounding:

- batch norm folds into the convolutions, and maps have their channels last;
- what no word touches is computed once per photograph, the first attention among the pixels included;
- the three levels go through SFM side by side, one expression at a time: no word is padded, the maps stay in the cache;
- HCAM's tiled sentence meets nine border cases instead of every pixel;
- 3×3 convolutions are Winograd's, atrous ones skip the padding, those after an up-sampling run before it.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refseg.engines.convolutions import Conv, ToLogits, upsampled
from refseg.engines.fast_encoder import FastImageEncoder, folded
from refseg.engines.packed import LEAKY, Geometry, Linear, attention, pack_linears
from refseg.errors import RefsegError
from refseg.models.interface import Features, Prediction, TokenBatch
from refseg.models.parts.position import pixels_position, words_position
from refseg.models.shnet import SHNet
from refseg.models.shnet.aggregation import HCAM, border_case
from refseg.models.shnet.fusion import SFM


def fastest_form(model: Any) -> Any:
    """The form that answers fastest where the network is: `FastSHNet` for an SHNet on a CPU, else the network itself.

    Its weights are copies, for inference alone. A network without SFM or HCAM stays as it is.
    """
    plain = not isinstance(model, SHNet) or model.device.type != "cpu" or model.dtype != torch.float32
    if plain or not isinstance(model.fusion, SFM) or not isinstance(model.aggregation, HCAM):
        return model.eval()
    return FastSHNet(model.eval())


class Ahead(NamedTuple):
    """What the words do not touch: the levels of I photographs, and the first layer of SFM among their pixels."""

    second: Tensor
    third: Tensor
    fourth: Tensor
    """The levels, each (I, C, h, w), as the plain form's."""
    pixels: Tensor
    """Normed pixels of the three levels, (I, 3, N, C) with N = h·w."""
    query: Tensor
    key: Tensor
    value: Tensor
    """Of the first layer, each (I, 3, heads, N, C/heads); the query divided by the root of C/heads."""
    met: Tensor
    """What the pixels' attention among themselves yields, (I, 3, heads, N, C/heads)."""
    weight: Tensor
    """Logarithm of the sum of that attention's exponentials, (I, 3, heads, N, 1)."""


class FastSHNet(nn.Module):
    """Takes and gives what `SHNet` does; for inference in float32 on a CPU, with SFM and HCAM."""

    def __init__(self, model: SHNet) -> None:
        super().__init__()
        self.image_encoder = FastImageEncoder(model.image_encoder)
        self.text_encoder = model.text_encoder
        self.fusion = FastSFM(model.fusion)
        self.aggregation = FastHCAM(model.aggregation)
        self.decoder = FastDecoder(model.decoder)

    @torch.no_grad()
    def forward(
        self,
        tokens: TokenBatch,
        *,
        images: Tensor | None = None,
        features: Features | None = None,
        photo_of: Tensor | None = None,
    ) -> Prediction:
        """As `SHNet.forward`, with `features` of this form's own `encode`."""
        ahead = Ahead(*features) if features is not None else self.encode(images)
        words, mask = self.text_encoder(tokens.ids, tokens.mask), tokens.mask  # (B, T, C)
        photos = [i % len(ahead.second) for i in range(len(words))] if photo_of is None else photo_of.tolist()
        logits = []
        for own, photo, length in zip(words, photos, mask.sum(dim=1).tolist(), strict=True):
            pixels, met = self.fusion(Ahead(*(part[photo] for part in ahead)), own[:length])  # (3, h, w, C), (3, T, C)
            joint = self.aggregation(pixels, met)  # (1, h, w, C)
            logits.append(self.decoder(joint))
        return Prediction(torch.cat(logits))

    @torch.no_grad()
    def encode(self, images: Tensor | None) -> Ahead:
        """images (I, 3, S, S) in 0..1; what it yields serves any number of expressions."""
        if images is None:
            raise RefsegError("there is no photograph; give images, or the levels that encode made of them")
        levels = self.image_encoder(images)
        return Ahead(*levels, *self.fusion.ahead(levels))


class FastSFM(nn.Module):
    """`fusion.SFM`; the first layer's attention splits into one among the pixels and one with the words."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.norm, self.final_norm, self.position = plain.norm, plain.final_norm, plain.position
        first, *later = (pack_linears(copy.deepcopy(layer)) for layer in plain.layers)
        self.first: Any = first
        self.later = nn.ModuleList(later)

    def ahead(self, levels: Features) -> tuple[Tensor, ...]:
        """The last six fields of `Ahead`."""
        _, c, h, w = levels[0].shape
        pixels = self.norm(torch.stack([level.flatten(2).transpose(1, 2) for level in levels], dim=1))
        query, key, value = self._project(pixels, pixels_position(h, w, c, pixels))
        met, weight = _attend(query, key, value)
        return pixels, query, key, value, met, weight

    def forward(self, ahead: Ahead, words: Tensor) -> tuple[Tensor, Tensor]:
        """One photograph, one expression's words (T, C) → pixels (3, h, w, C) and words (3, T, C)."""
        (t, c), (h, w) = words.shape, ahead.second.shape[-2:]
        x = self._first(ahead, self.norm(words))  # (3, N+T, C)
        position = x.new_zeros(1)
        if self.position:
            position = torch.cat([pixels_position(h, w, c, x), words_position(t, c, x)])
        for layer in self.later:
            x = _apply(layer, x, position)
        pixels, met = self.final_norm(x).split([h * w, t], dim=1)
        return pixels.unflatten(1, (h, w)), met

    def _first(self, ahead: Ahead, words: Tensor) -> Tensor:
        """The first layer on normed words (T, C); (3, N+T, C).

        Each pixel's attention is the mean of its two parts, weighed by their sums of exponentials.
        """
        query, key, value = self._project(
            words, words_position(words.shape[0], words.shape[1], words)
        )  # (heads, T, C/heads)
        scores = ahead.query @ key.transpose(-1, -2)  # (3, heads, N, T)
        total = torch.logaddexp(ahead.weight, scores.logsumexp(dim=-1, keepdim=True))
        of_pixels = (ahead.weight - total).exp() * ahead.met + (scores - total).exp() @ value
        keys, values = (
            torch.cat([a, b.expand(3, *b.shape)], dim=-2) for a, b in ((ahead.key, key), (ahead.value, value))
        )
        of_words = (query @ keys.transpose(-1, -2)).softmax(dim=-1) @ values  # (3, heads, T, C/heads)
        met = torch.cat([of_pixels, of_words], dim=-2).transpose(1, 2).flatten(2)  # (3, N+T, C)
        x = torch.cat([ahead.pixels, words.expand(3, *words.shape)], dim=1) + self.first.out(met)
        return x + self.first.ffn(x)

    def _project(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.first.project(x, position if self.position else position.new_zeros(1))
        return query * query.shape[-1] ** -0.5, key, value


def _apply(layer: Any, x: Tensor, position: Tensor) -> Tensor:
    """`fusion.AttentionLayer` where every token may be attended to."""
    query, key, value = (part.float() for part in layer.project(x, position))
    x = x + layer.out(attention(query, key, value).transpose(1, 2).flatten(2))
    return x + layer.ffn(x)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (I, 3, heads, N, C/heads) of scaled queries, and the logarithm of its sums of exponentials (…, N, 1).

    The kernel behind scaled_dot_product_attention knows both; PyTorch's public function keeps the second to itself.
    """
    flat = (part.flatten(0, 1) for part in (query, key, value))
    met, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*flat, scale=1.0)
    return met.unflatten(0, query.shape[:2]), weight.reshape(*query.shape[:-1], 1)


class FastHCAM(nn.Module):
    """`aggregation.HCAM` with the three gates side by side."""

    of_sentence: Tensor

    def __init__(self, plain: Any) -> None:
        super().__init__()
        width = plain.join.conv.out_channels
        weights, biases = zip(*(folded(gate.conv, gate.norm) for gate in plain.gates), strict=True)
        weight = torch.stack(weights)  # (3, C, 2·C, 3, 3)
        self.gates = nn.ModuleList(
            Conv(own[:, :width], bias, Geometry(padding=1)) for own, bias in zip(weights, biases, strict=True)
        )
        # Which taps of a 3×3 kernel lie on a zero-padded 3×3 map, at each of its nine places: every border case.
        inside = F.unfold(torch.ones(1, 1, 3, 3), 3, padding=1)[0]  # (9 taps, 9 places)
        taps = weight[:, :, width:].flatten(3)  # (3, C out, C in, 9 taps)
        self.register_buffer("of_sentence", torch.einsum("tp,goct->gcpo", inside, taps).flatten(2).contiguous())
        join, bias = folded(plain.join.conv, plain.join.norm)
        self.join = Conv(join.transpose(1, 2).flatten(1, 2), bias, Geometry(padding=1), LEAKY)

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        """pixels (3, h, w, C), words (3, T, C) → (1, h, w, C)."""
        _, h, w, c = pixels.shape
        sentences = words.sum(dim=1) / max(1, words.shape[1])  # (3, C)
        rows, columns = border_case(h, pixels.device), border_case(w, pixels.device)
        exchanged = []
        for i in range(3):
            total, scores = pixels[i].clone(), self.gates[i](pixels[i : i + 1])[0]  # (h, w, C)
            for j in (j for j in range(3) if j != i):
                cases = (sentences[j] @ self.of_sentence[i]).view(3, 3, c)
                of_sentence = cases.index_select(0, rows).index_select(1, columns)
                total.addcmul_(of_sentence.add_(scores).sigmoid_(), pixels[j])
            exchanged.append(total)
        return self.join(torch.cat(exchanged, dim=-1)[None])


class FastDecoder(nn.Module):
    """`decoder.Decoder`; the mean of the image joins the mixture as what it is, the same value at every pixel."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        (single, *dilated), mix = plain.aspp.branches, plain.aspp.mix[0]
        self.single = Linear(*folded(single[0], single[1]), LEAKY)
        rates = [branch[0].dilation[0] for branch in dilated]
        self.dilated = nn.ModuleList(
            Conv(*folded(branch[0], branch[1]), Geometry(padding=rate, dilation=rate), LEAKY)
            for branch, rate in zip(dilated, rates, strict=True)
        )
        self.image = plain.aspp.image
        weight, bias = folded(mix[0], mix[1])
        maps = weight.shape[1] - self.image.out_channels
        self.mix_maps = Linear(weight[:, :maps])
        self.mix_image = Linear(weight[:, maps:], bias)
        first, *later = (folded(block[0], block[1]) for block in plain.refine)
        self.refine = Conv(*first, Geometry(padding=1), LEAKY)
        self.later = nn.ModuleList(upsampled(*weights, LEAKY) for weights in later)
        self.head = ToLogits(plain.head.weight.detach(), plain.head.bias.detach())

    def forward(self, joint: Tensor) -> Tensor:
        """joint (B, h, w, C) → mask logits (B, 1, 4h, 4w)."""
        image = LEAKY(self.image(joint.mean(dim=(1, 2))[:, :, None, None])).flatten(1)
        branches = [branch(joint) for branch in (self.single, *self.dilated)]
        x = LEAKY(self.mix_maps(torch.cat(branches, dim=-1)).add_(self.mix_image(image)[:, None, None]))
        x = self.refine(x)
        for conv in self.later:
            x = conv(x)
        return self.head(x)
