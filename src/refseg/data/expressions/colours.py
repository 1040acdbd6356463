"""Names the colour of a segment from its pixels, or says that it has no clear one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BASIC = (
    "black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "beige",
)  # fmt: skip

Pixels = npt.NDArray[np.uint8]
Shares = npt.NDArray[np.float64]


class _Region(NamedTuple):
    """A box in hue (degrees, may wrap below 0), saturation and value (0..1)."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]


_ALL_HUES = (0.0, 360.0)

# Strict regions leave gaps between neighbouring colours, and loose ones overlap. A borderline colour is therefore
# neither claimed ("the red bag") nor excluded ("the only red bag").
_STRICT: dict[str, tuple[_Region, ...]] = {
    "black": (_Region(_ALL_HUES, (0.0, 0.45), (0.0, 0.22)), _Region(_ALL_HUES, (0.0, 1.0), (0.0, 0.11))),
    "white": (_Region(_ALL_HUES, (0.0, 0.10), (0.82, 1.0)),),
    "grey": (_Region(_ALL_HUES, (0.0, 0.10), (0.32, 0.68)),),
    "red": (_Region((-12, 10), (0.55, 1.0), (0.32, 1.0)),),
    "orange": (_Region((18, 36), (0.65, 1.0), (0.72, 1.0)),),
    "yellow": (_Region((46, 64), (0.45, 1.0), (0.62, 1.0)),),
    "green": (_Region((80, 160), (0.28, 1.0), (0.2, 1.0)),),
    "blue": (_Region((200, 246), (0.35, 1.0), (0.28, 1.0)),),
    "purple": (_Region((268, 302), (0.28, 1.0), (0.24, 1.0)),),
    "pink": (_Region((318, 345), (0.2, 0.75), (0.68, 1.0)), _Region((-16, 10), (0.2, 0.42), (0.78, 1.0))),
    "brown": (_Region((10, 36), (0.4, 0.95), (0.18, 0.48)),),
    "beige": (_Region((22, 50), (0.12, 0.34), (0.64, 0.97)),),
}
_LOOSE: dict[str, tuple[_Region, ...]] = {
    "black": (_Region(_ALL_HUES, (0.0, 1.0), (0.0, 0.38)),),
    "white": (_Region(_ALL_HUES, (0.0, 0.22), (0.6, 1.0)),),
    "grey": (_Region(_ALL_HUES, (0.0, 0.26), (0.14, 0.88)),),
    "red": (_Region((-32, 22), (0.3, 1.0), (0.14, 1.0)),),
    "orange": (_Region((6, 46), (0.4, 1.0), (0.42, 1.0)),),
    "yellow": (_Region((35, 78), (0.22, 1.0), (0.4, 1.0)),),
    "green": (_Region((58, 182), (0.1, 1.0), (0.1, 1.0)),),
    "blue": (_Region((172, 270), (0.12, 1.0), (0.1, 1.0)),),
    "purple": (_Region((246, 335), (0.1, 1.0), (0.1, 1.0)),),
    "pink": (_Region((-70, 26), (0.08, 1.0), (0.42, 1.0)),),
    "brown": (_Region((-10, 50), (0.18, 1.0), (0.08, 0.7)),),
    "beige": (_Region((8, 66), (0.05, 0.52), (0.42, 1.0)),),
}


class Colours(NamedTuple):
    """Shares of a segment's pixels, (12,) each, in the order of `BASIC`, 0..1."""

    surely: Shares
    perhaps: Shares

    def name(self) -> str:
        """The one colour that most pixels clearly have. "" if there is none."""
        best = int(np.argmax(self.surely))
        rival = float(np.partition(self.surely, -2)[-2])
        clear = self.surely[best] >= 0.55 and rival <= 0.4 * self.surely[best]
        return BASIC[best] if clear else ""

    def truth(self, colour: str) -> int:
        """+1 if people call the segment by that colour, −1 if nobody would, else 0."""
        if self.name() == colour:
            return 1
        return -1 if self.perhaps[BASIC.index(colour)] < 0.2 else 0


def measure(pixels: Pixels) -> Colours:
    """Colour shares of pixels (N, 3) uint8 RGB."""
    hue, saturation, value = _hsv(pixels)

    def shares(regions: dict[str, tuple[_Region, ...]]) -> Shares:
        return np.array([_inside(regions[name], hue, saturation, value).mean() for name in BASIC])

    return Colours(shares(_STRICT), shares(_LOOSE))


def _hsv(pixels: Pixels) -> tuple[Shares, Shares, Shares]:
    """Hue in degrees, saturation and value in 0..1, (N,) each."""
    rgb = pixels.astype(np.float64) / 255
    red, green, blue = rgb.T
    value = rgb.max(axis=1)
    spread = value - rgb.min(axis=1)
    safe = np.where(spread > 0, spread, 1)
    hue = np.where(
        value == red,
        (green - blue) / safe,
        np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    return hue * 60 % 360, spread / np.where(value > 0, value, 1), value


def _inside(regions: tuple[_Region, ...], hue: Shares, saturation: Shares, value: Shares) -> npt.NDArray[np.bool_]:
    inside = np.zeros(len(hue), dtype=bool)
    for region in regions:
        low, high = region.hue
        inside |= (
            ((hue - low) % 360 <= high - low)
            & (saturation >= region.saturation[0])
            & (saturation <= region.saturation[1])
            & (value >= region.value[0])
            & (value <= region.value[1])
        )
    return inside
