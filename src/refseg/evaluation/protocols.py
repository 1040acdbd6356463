"""Scoring protocols: on which pixels a prediction meets its target, what decides a pixel, and how odd cases count.

docs/protocols.md has the table and shows how far the protocols differ for the same predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from refseg.errors import RefsegError
from refseg.masks import Mask
from refseg.transforms import sigmoid, to_photograph

Floats = npt.NDArray[np.floating]
Places = tuple[npt.NDArray[np.int64], Floats]
"""Whole parts and remainders, 0..1, of the places in an old grid at which the new pixels lie."""

_FINE = 1024
"""OpenCV 4 warps in whole steps of 1/1024 pixel, and then rounds to 1/32."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a score depends on besides the masks. Two scores compare only under the same protocol."""

    name: str
    scored_at: str
    """The pixels on which prediction and target are compared, in words."""
    threshold: float
    """A pixel belongs to the prediction if its probability is greater than this."""
    precise_at_equality: bool
    """Whether an IoU of exactly X counts for precision@X."""
    both_empty: float | None
    """The IoU of an empty prediction with an empty target. None leaves the expression out."""
    square: int | Literal["half"] | None = None
    """Side of the square on which masks are scored. "half" is half the network's, None the photograph's own pixels."""
    target: Literal["nearest", "touched"] = "nearest"
    """How a target comes to the square: by the nearest pixel, or as every pixel that bilinear resizing puts above 0."""
    bicubic: bool = False
    """Whether probabilities are warped bicubically through the network's square. Else logits are resized bilinearly."""
    float32: bool = False
    """Whether the X of precision@X is rounded to float32, which makes 0.7 and 0.9 a little smaller."""
    smoothing: float = 0.0
    """Added to every union before the division."""
    overall: bool = True
    """Whether the protocol has an overall IoU."""
    no_target: bool = False
    """Whether expressions without a referent count apart, and "found nothing" is an answer of its own."""

    def size(self, photograph: tuple[int, int], image_size: int) -> tuple[int, int]:
        """Height and width of the pixels that are scored. photograph is (H, W), image_size the network's square."""
        if self.square is None:
            return photograph
        side = image_size // 2 if self.square == "half" else self.square
        return side, side

    def decide(
        self,
        mask_logits: npt.NDArray[np.float32],
        photograph: tuple[int, int],
        image_size: int,
        *,
        letterbox: bool = False,
    ) -> Mask:
        """Predictions (E, H', W') bool from mask logits (E, 1, h, w) float32 over the network's square.

        The square shows the photograph resized without regard to its aspect. With `letterbox` it shows the photograph
        scaled to fit, in the middle of a border. Only a protocol that is `bicubic` undoes that.
        """
        if not self.bicubic:
            return to_photograph(mask_logits, self.size(photograph, image_size)) > self.threshold
        probability = sigmoid(np.asarray(mask_logits, dtype=np.float64)[:, 0])
        for axis, places in enumerate(_warped(photograph, image_size, letterbox), start=1):
            side = probability.shape[axis]
            weights = _cubic(places, image_size) @ _cubic(_aligned(image_size, side), side, repeat=True)
            probability = np.moveaxis(np.tensordot(weights, probability, axes=(1, axis)), 0, axis)
        return probability > self.threshold

    def bring(self, mask: Mask, image_size: int) -> Mask:
        """A prediction that is stored as a mask (H, W), on the pixels that are scored.

        A stored mask has no probabilities left, so it goes the target's way. Under `touched`, which would make it
        grow, it is resized bilinearly and decided at the threshold. A mask of the square's size stays as it is.
        """
        size = self.size((mask.shape[0], mask.shape[1]), image_size)
        if mask.shape == size:
            return mask
        if self.target == "touched":
            return _bilinear(mask, size) > self.threshold
        return _nearest(mask, size)

    def bring_target(self, mask: Mask, image_size: int) -> Mask:
        """A target (H, W) on the pixels that are scored."""
        size = self.size((mask.shape[0], mask.shape[1]), image_size)
        if self.square is None:
            return mask
        return _bilinear(mask, size) > 0 if self.target == "touched" else _nearest(mask, size)


def _nearest(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask (H, W) resized by Pillow's NEAREST. Between two pixels that are equally near, its rounding decides."""
    resized = Image.fromarray(mask.astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized) > 0


def _bilinear(mask: Mask, size: tuple[int, int]) -> Floats:
    """Shares 0..1 of a mask (H, W) resized with aligned corners, as in the code that SHNet's authors released."""
    values: Floats = mask.astype(np.float32)
    for length in size:
        low, share = _aligned(length, len(values))
        high = np.minimum(low + 1, len(values) - 1)
        values = (values[low] * (1 - share)[:, None] + values[high] * share[:, None]).T
    return values


def _aligned(length: int, whole: int) -> Places:
    """Where `length` pixels lie among `whole` others if the first and the last coincide, in PyTorch's float32."""
    place = np.arange(length, dtype=np.float32) * (np.float32(whole - 1) / np.float32(max(length - 1, 1)))
    low = place.astype(np.int64)
    return low, place - low.astype(np.float32)


def _warped(photograph: tuple[int, int], side: int, letterbox: bool) -> tuple[Places, Places]:
    """Where the rows and the columns of a photograph (H, W) lie in the network's square, as OpenCV 4 warps for CRIS.

    The corners of the photograph are mapped onto corners, and this map is then applied to the centres of pixels.
    """
    found = []
    for axis, length in enumerate(photograph):
        shown = length * min(side / whole for whole in photograph) if letterbox else side
        first, last = (float(np.float32(edge)) for edge in ((side - shown) / 2, (side + shown) / 2))
        steps = np.arange(length) * ((last - first) / length)
        # OpenCV rounds the step and the offset of a row together, and those of a column one by one.
        fine = np.rint((steps + first) * _FINE) if axis == 0 else np.rint(steps * _FINE) + np.rint(first * _FINE)
        place = (fine.astype(np.int64) + 16) >> 5
        found.append((place >> 5, (place & 31) / 32))
    return found[0], found[1]


def _cubic(places: Places, whole: int, *, repeat: bool = False) -> Floats:
    """Weights (new, whole) of cubic resampling with a = −0.75. Outside lies 0, or with `repeat` the nearest pixel."""
    low, share = places[0], places[1].astype(np.float64)
    a = -0.75

    def near(x: Floats) -> Floats:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Floats) -> Floats:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    weights = np.zeros((len(low), whole))
    for column, weight in enumerate((far(share + 1), near(share), near(1 - share), far(2 - share)), start=-1):
        place = np.clip(low + column, 0, whole - 1)
        inside = repeat | (place == low + column)
        weights[np.arange(len(low)), place] += weight * inside
    return weights


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
    "original H×W, probabilities warped bicubically",
    threshold=0.35,
    precise_at_equality=False,
    both_empty=0.0,
    bicubic=True,
    float32=True,
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
    referent: bool = True
    """Whether there is one. The original mask says so: on a small square it may have no pixel left."""

    @property
    def union(self) -> int:
        """Pixels of prediction or target."""
        return self.prediction + self.target - self.intersection


def count_pixels(prediction: Mask, target: Mask, found: bool | None = None, referent: bool | None = None) -> Pixels:
    """Compares two masks (H, W) bool.

    Without `found`, an empty prediction claims that there is no referent. Without `referent`, an empty target means
    that there is none. Raises RefsegError for other shapes or types.
    """
    if prediction.ndim != 2 or prediction.shape != target.shape:
        raise RefsegError(
            f"a prediction of shape {prediction.shape} cannot be scored against a target of shape "
            f"{target.shape}; bring both to the H×W of the photograph"
        )
    if prediction.dtype != np.bool_ or target.dtype != np.bool_:
        raise RefsegError(f"masks of {prediction.dtype} and {target.dtype} cannot be scored; threshold them to bool")
    size, area = int(np.count_nonzero(prediction)), int(np.count_nonzero(target))
    return Pixels(
        intersection=int(np.count_nonzero(prediction & target)),
        prediction=size,
        target=area,
        found=size > 0 if found is None else found,
        referent=area > 0 if referent is None else referent,
    )
