"""Scoring protocols: on which pixels prediction and target meet, what is decided there, and what doubtful cases count.

docs/protocols.md has the table and shows how far the protocols differ for the same predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from refseg.errors import RefsegError
from refseg.masks import Mask
from refseg.transforms import to_photograph


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a score depends on besides the masks; two scores compare only under the same protocol."""

    name: str
    scored_at: str
    """The pixels on which prediction and target are compared, in words."""
    threshold: float
    """A pixel belongs to the prediction where its probability is greater."""
    precise_at_equality: bool
    """Whether an IoU of exactly X counts for precision@X."""
    both_empty: float | None
    """The IoU of an empty prediction with an empty target; None passes the expression over."""
    square: int | Literal["half"] | None = None
    """Side of the square on which masks are scored, or "half" the network's; None: the photograph's own pixels."""
    target: Literal["nearest", "touched"] = "nearest"
    """How a target comes to the square: the nearest pixel, or every pixel that bilinear resizing leaves above 0."""
    bicubic: bool = False
    """Whether probabilities are resized, bicubically, by way of the network's square; else logits, bilinearly."""
    smoothing: float = 0.0
    """Added to every union before the division."""
    overall: bool = True
    """Whether the protocol knows an overall IoU."""
    no_target: bool = False
    """Whether expressions without a referent count apart, and "found nothing" is an answer of its own."""

    def size(self, photograph: tuple[int, int], image_size: int) -> tuple[int, int]:
        """Height and width of the pixels that are scored; photograph is (H, W), image_size the network's square."""
        if self.square is None:
            return photograph
        side = image_size // 2 if self.square == "half" else self.square
        return side, side

    def decide(self, mask_logits: Tensor, photograph: tuple[int, int], image_size: int) -> Mask:
        """Predictions (E, H', W') bool from mask logits (E, 1, h, w) over the network's square."""
        size = self.size(photograph, image_size)
        if self.bicubic:
            probability = mask_logits.float().sigmoid()
            for step in ((image_size, image_size), size):
                probability = F.interpolate(probability, size=step, mode="bicubic", align_corners=False)
            probability = probability.squeeze(1)
        else:
            probability = to_photograph(mask_logits, size)
        decided: Mask = (probability > self.threshold).cpu().numpy()
        return decided

    def bring(self, mask: Mask, image_size: int) -> Mask:
        """A prediction that is stored as a mask (H, W), on the pixels that are scored.

        Where no probabilities are left, the mask goes the target's way; under `touched`, which would make it grow,
        it is resized bilinearly and decided at the threshold. A mask of the square's size stays as it is.
        """
        size = self.size((mask.shape[0], mask.shape[1]), image_size)
        if mask.shape == size:
            return mask
        if self.target == "touched":
            return _resize(mask, size, "bilinear") > self.threshold
        return _resize(mask, size, "nearest-exact") > 0

    def bring_target(self, mask: Mask, image_size: int) -> Mask:
        """A target (H, W) on the pixels that are scored."""
        size = self.size((mask.shape[0], mask.shape[1]), image_size)
        if self.square is None:
            return mask
        return _resize(mask, size, "bilinear" if self.target == "touched" else "nearest-exact") > 0


def _resize(mask: Mask, size: tuple[int, int], mode: str) -> npt.NDArray[np.float32]:
    values = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]
    corners = True if mode == "bilinear" else None  # as in the code that SHNet's authors released
    return np.asarray(F.interpolate(values, size=size, mode=mode, align_corners=corners)[0, 0])


NATIVE = Protocol("native", "original H×W", threshold=0.5, precise_at_equality=True, both_empty=1.0)
SHNET = Protocol(
    "shnet",
    "square S/2, target dilated by bilinear resizing",
    threshold=0.40,
    precise_at_equality=False,
    both_empty=None,
    square="half",
    target="touched",
)
LAVT = Protocol("lavt", "square 480", threshold=0.5, precise_at_equality=True, both_empty=0.0, square=480)
CRIS = Protocol(
    "cris",
    "original H×W, probabilities resized bicubically",
    threshold=0.35,
    precise_at_equality=False,
    both_empty=0.0,
    bicubic=True,
    smoothing=1e-6,
    overall=False,
)
GRES = Protocol(
    "gres",
    "square 480, expressions without a referent apart",
    threshold=0.5,
    precise_at_equality=True,
    both_empty=1.0,
    square=480,
    no_target=True,
)
PROTOCOLS = {protocol.name: protocol for protocol in (NATIVE, SHNET, LAVT, CRIS, GRES)}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name. Raises RefsegError that lists the names."""
    if name not in PROTOCOLS:
        raise RefsegError(f"there is no protocol {name!r}; one of: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


class Pixels(NamedTuple):
    """All that is kept of one scored expression, in pixels of the protocol's size."""

    intersection: int
    prediction: int
    target: int
    found: bool
    """Whether the answer claims that there is a referent."""

    @property
    def union(self) -> int:
        """Pixels of prediction or target."""
        return self.prediction + self.target - self.intersection


def count_pixels(prediction: Mask, target: Mask, found: bool | None = None) -> Pixels:
    """Compares two masks (H, W) bool; without `found`, an empty prediction claims that there is no referent.

    Raises RefsegError for other shapes or types.
    """
    if prediction.ndim != 2 or prediction.shape != target.shape:
        raise RefsegError(
            f"a prediction of shape {prediction.shape} cannot be scored against a target of shape "
            f"{target.shape}; bring both to the H×W of the photograph"
        )
    if prediction.dtype != np.bool_ or target.dtype != np.bool_:
        raise RefsegError(f"masks of {prediction.dtype} and {target.dtype} cannot be scored; threshold them to bool")
    size = int(np.count_nonzero(prediction))
    intersection = int(np.count_nonzero(prediction & target))
    return Pixels(intersection, size, int(np.count_nonzero(target)), size > 0 if found is None else found)
