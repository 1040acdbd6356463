"""Other models behind the same call: `refseg.load("clipseg")`, `refseg.load("sam3")`, or a folder that holds one.

Each is a form of the seam that SHNet has too: `encode` sees the photograph once, the call answers expressions about it.
Photographs are resized and normalised here, so that torchvision is not needed. docs/models.md has their licences.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from refseg.checkpoints import Checkpoint, Settings
from refseg.errors import RefsegError, first_line
from refseg.models.interface import Features, Prediction, TokenBatch
from refseg.models.parts.backbone import IMAGENET_MEAN, IMAGENET_STD
from refseg.models.reading import quiet_transformers
from refseg.words import Tokens

CONFIDENCE = 0.5
"""Of an instance that SAM 3 counts as meant by the expression, as its authors' own demo decides."""
_NOTHING = -20.0
"""Mask logit where no instance is."""


class OtherModel(nn.Module, ABC):
    """A model of `transformers` that answers expressions with masks."""

    kind: ClassVar[str]
    about: ClassVar[str]
    mean: Tensor
    std: Tensor

    def __init__(self, net: Any, image_size: int, statistics: tuple[Sequence[float], Sequence[float]]) -> None:
        """`statistics`: mean and standard deviation of the three colours, for pixels in 0..1."""
        super().__init__()
        self.net = net
        words = _text_config(net).max_position_embeddings
        self.settings = Settings(self.kind, image_size, words, training_data=self.about)
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    @abstractmethod
    def encode(self, images: Tensor) -> Features:
        """images (1, 3, S, S) in 0..1 → what serves any number of expressions."""

    @abstractmethod
    def forward(self, tokens: TokenBatch, *, features: Features) -> Prediction:
        """What the model says about the B expressions, with what `encode` made of one photograph."""

    def attention(self, tokens: TokenBatch, features: Features) -> Tensor:
        """Raises RefsegError: there is none to show."""
        raise RefsegError("this model fuses without attention; load one whose config says fusion: sfm")


class CLIPSeg(OtherModel):
    """CLIPSeg (Lüddecke and Ecker, CVPR 2022): CLIP's activations, and a light decoder that the sentence modulates."""

    kind = "clipseg"
    about = "PhraseCut (CLIPSeg's authors), on CLIP's image and text pairs"

    def encode(self, images: Tensor) -> Features:
        pixels = (images - self.mean) / self.std
        hidden = self.net.clip.vision_model(pixels, output_hidden_states=True).hidden_states
        return tuple(hidden[layer + 1] for layer in self.net.extract_layers)

    def forward(self, tokens: TokenBatch, *, features: Features) -> Prediction:
        count, read = len(tokens.ids), tokens.mask.long()
        condition = self.net.get_conditional_embeddings(count, input_ids=tokens.ids, attention_mask=read)
        activations = [layer.expand(count, -1, -1) for layer in features]
        return Prediction(self.net.decoder(activations, condition).logits[:, None])


class SAM3(OtherModel):
    """SAM 3 (Meta, 2025): every instance of a short noun phrase; the answer is the union of the confident ones."""

    kind = "sam3"
    about = "SA-Co (Meta)"

    def encode(self, images: Tensor) -> Features:
        seen = self.net.vision_encoder((images - self.mean) / self.std)
        return *seen.fpn_hidden_states, *seen.fpn_position_encoding

    def forward(self, tokens: TokenBatch, *, features: Features) -> Prediction:
        """The union of all instances above CONFIDENCE, and the best one's confidence."""
        from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

        half = len(features) // 2
        seen = Sam3VisionEncoderOutput(fpn_hidden_states=features[:half], fpn_position_encoding=features[half:])
        masks, confidences = [], []
        # One at a time: a thousand pixels square fill the memory.
        for ids, mask in zip(tokens.ids, tokens.mask, strict=True):
            found = self.net(vision_embeds=seen, input_ids=ids[None], attention_mask=mask[None].long())
            confidence = (found.pred_logits.sigmoid() * found.presence_logits.sigmoid())[0]  # (instances,)
            union, best = unite(found.pred_masks[0], confidence)
            masks.append(union)
            confidences.append(best)
        return Prediction(torch.stack(masks)[:, None], confidence=torch.tensor(confidences))


def unite(mask_logits: Tensor, confidence: Tensor) -> tuple[Tensor, float]:
    """mask_logits (N, h, w), confidence (N,) → logits (h, w) of the union of those above CONFIDENCE; the best one."""
    kept = mask_logits[confidence > CONFIDENCE]
    if not len(kept):
        return torch.full_like(mask_logits[0], _NOTHING), 0.0
    return kept.amax(dim=0), float(confidence.max())


class BytePairTokenizer:
    """CLIP's tokenizer with the call of `refseg.words.WordTokenizer`: it knows parts of every word."""

    def __init__(self, tokenizer: Any, max_words: int) -> None:
        """`max_words`: tokens that are read, the start and the end of the sentence among them."""
        self.tokenizer, self.max_words = tokenizer, max_words

    @property
    def vocabulary(self) -> dict[str, int]:
        return dict(self.tokenizer.get_vocab())

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __call__(self, expressions: Sequence[str]) -> Tokens:
        """ids and mask (B, T), padded to all tokens that are read; no word is unknown."""
        whole = [len(ids) for ids in self.tokenizer(list(expressions)).input_ids] if expressions else []
        read = {"input_ids": np.zeros((0, self.max_words), dtype=np.int64)}
        read["attention_mask"] = read["input_ids"]
        if expressions:
            read = self.tokenizer(
                list(expressions),
                padding="max_length",
                truncation=True,
                max_length=self.max_words,
                return_tensors="np",
            )
        return Tokens(
            ids=read["input_ids"],
            mask=read["attention_mask"].astype(np.bool_),
            unknown=[() for _ in expressions],
            truncated=[length > self.max_words for length in whole],
        )


@dataclass(frozen=True)
class _Kind:
    """How a model type is read."""

    form: type[OtherModel]
    classes: Callable[[], Any]
    """Fetches the class of `transformers`."""
    statistics: tuple[Sequence[float], Sequence[float]]
    """Where the checkpoint does not say."""


def _clipseg() -> Any:
    from transformers import CLIPSegForImageSegmentation

    return CLIPSegForImageSegmentation


def _sam3() -> Any:
    try:
        # From its own module: the package's name for it asks for torchvision, which text prompts do not need.
        from transformers.models.sam3.modeling_sam3 import Sam3Model
    except ImportError as fault:
        raise RefsegError('the installed transformers has no SAM 3; pip install -U "transformers>=5,<6"') from fault
    return Sam3Model


KINDS = {
    "clipseg": _Kind(CLIPSeg, _clipseg, (IMAGENET_MEAN, IMAGENET_STD)),
    "sam3": _Kind(SAM3, _sam3, ((0.5,) * 3, (0.5,) * 3)),
    "sam3_video": _Kind(SAM3, _sam3, ((0.5,) * 3, (0.5,) * 3)),  # the published checkpoint holds the tracker too
}
"""By the `model_type` of a checkpoint's config.json."""


def read_other(checkpoint: Checkpoint) -> tuple[OtherModel, BytePairTokenizer]:
    """A checkpoint's model and tokenizer. Raises RefsegError where it is incomplete or damaged."""
    from transformers import CLIPTokenizer

    folder, model_type = checkpoint.folder, checkpoint.model_type
    kind = KINDS[model_type]
    source = kind.classes()
    try:
        with quiet_transformers():
            net, report = source.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as fault:  # damaged files, or a config that builds no network
        raise RefsegError(
            f"{folder} holds no usable {model_type} ({first_line(fault)}); copy the checkpoint again"
        ) from fault
    if missing := sorted(report["missing_keys"]):
        raise RefsegError(f"the weights in {folder} lack {missing[0]}; copy the checkpoint again")
    if len(tokenizer) > (words := _text_config(net).vocab_size):
        raise RefsegError(f"{folder} has {len(tokenizer)} tokens for a model of {words}; copy one whole checkpoint")
    side = net.config.vision_config.image_size
    model = kind.form(net, side if isinstance(side, int) else side[0], _statistics(folder) or kind.statistics)
    return model, BytePairTokenizer(tokenizer, model.settings.max_words)


def _text_config(net: Any) -> Any:
    return net.config.text_config


def _statistics(folder: Path) -> tuple[list[float], list[float]] | None:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            record = json.loads((folder / name).read_text(encoding="utf-8"))
            record = record.get("image_processor", record)
            if {"image_mean", "image_std"} <= record.keys():
                return record["image_mean"], record["image_std"]
    return None
