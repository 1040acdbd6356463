"""Reads a photograph from whatever the caller has, as it is displayed."""

from __future__ import annotations

import codecs
import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from refseg.errors import RefsegError, first_line

PhotoSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.generic]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")

MAX_PIXELS = 100_000_000
"""The largest photograph that is read, in pixels; a header that promises more is refused before decoding."""

_CONVERT = "convert it to PNG, JPEG, WebP, BMP or TIFF"

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings each EXIF orientation upright; 1 is upright already."""

_OWN_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")

_OTHER_SIGNATURES = (
    (0, b"GIF8", "a GIF"),
    (0, b"%PDF", "a PDF document"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"PK\x03\x04", "a ZIP archive or office document"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\x93NUMPY", "a NumPy array file"),
    (0, b"\x00\x00\x00\x0cjP", "a JPEG 2000 image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (4, b"ftypavif", "an AVIF image"),
    (4, b"ftyphei", "a HEIC image"),
    (4, b"ftyphevc", "a HEIC image"),
    (4, b"ftypmif1", "a HEIC image"),
    (4, b"ftyp", "a video"),
    (8, b"AVI ", "a video"),
)

_warnings_lock = threading.Lock()


def read_photo(source: PhotoSource) -> Image.Image:
    """The photograph as displayed: RGB, 8 bits, upright by its EXIF orientation.

    `source` is a path, the bytes of a file (PNG, JPEG, WebP, BMP or TIFF; the first frame of several), a
    PIL image of any mode (an EXIF orientation that it carries is applied as well), or a uint8 array:
    (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) grey. Transparency is laid on white; 16 bits are scaled to 8.
    A plain RGB image is returned itself, not copied.

    Raises RefsegError if there is no such file, or if it is not a photograph, is damaged, or has more than
    `MAX_PIXELS` pixels.
    """
    if isinstance(source, Image.Image):
        return _as_displayed(source, "the image")
    if isinstance(source, np.ndarray):
        return _as_displayed(_from_array(source), "the array")
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(bytes(source)), "the photograph given as bytes")
    if isinstance(source, str | os.PathLike):
        return _from_path(os.fsdecode(source))
    raise RefsegError(
        f"a photograph cannot be read from a {type(source).__name__}; "
        "give a path, bytes, a PIL image or a uint8 array (H, W, 3)"
    )


def _from_path(source: str) -> Image.Image:
    name = source if source.isprintable() else ascii(source)
    if not source:
        raise RefsegError("the path is empty; give the path of one photograph")
    if source.startswith(("http://", "https://")):
        raise RefsegError(f"{name} is an address, not a file; download it and give the file's path")
    path = Path(source)
    try:
        file = None if path.exists() and not path.is_file() else path.open("rb")
    except FileNotFoundError:
        raise RefsegError(f"there is no file {name}; check the path") from None
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise RefsegError(f"{name} cannot be opened ({reason}); check its path and permissions") from fault
    if file is None:
        raise RefsegError(f"{name} is a folder or a device; give the path of one photograph")
    with file:
        return _from_file(file, name)


def _from_file(file: IO[bytes], name: str) -> Image.Image:
    try:
        head = file.read(1024)
        file.seek(0)
    except OSError as fault:
        raise RefsegError(f"{name} cannot be read ({fault.strerror}); copy it to another place") from fault
    if not head:
        raise RefsegError(f"{name} is empty (0 bytes); give a photograph that has content")
    try:
        with _without_warnings():
            image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise RefsegError(_too_large(name, "too many")) from None
    except Exception as fault:  # a damaged header surfaces as any error of any decoder
        raise RefsegError(_too_much_beside(fault, name) or _not_a_photograph(head, name)) from fault
    with image:
        return _as_displayed(image, name)


def _as_displayed(image: Image.Image, name: str) -> Image.Image:
    if not (image.width and image.height):
        raise RefsegError(f"{name} has no pixels ({image.width}×{image.height}); give one that has some")
    if image.width * image.height > MAX_PIXELS:
        raise RefsegError(_too_large(name, f"{image.width}×{image.height}"))
    try:
        with _without_warnings():
            image.load()
            orientation = _orientation(image)  # after loading: Pillow turns TIFF files upright itself
        rgb = _to_rgb(image, name)
    except RefsegError:
        raise
    except Exception as fault:  # damaged pixels surface as any error of any decoder
        damaged = f"{name} is damaged or cut short ({first_line(fault)}); get a new copy"
        raise RefsegError(_too_much_beside(fault, name) or damaged) from fault
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    if rgb is not image:
        rgb.info = {}  # otherwise the orientation would be applied once more when the result is read again
    return rgb


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns about metadata and sizes, on which the caller cannot act.

    Warning filters belong to the whole process: without the lock, two threads could restore them wrongly.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken metadata must not cost the photograph
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image if type(image) is Image.Image else image.copy()
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image, name).convert("RGB")
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError:
        raise RefsegError(f"{name} has the colour mode {image.mode}; convert it to RGB") from None


def _from_deep_grey(image: Image.Image, name: str) -> Image.Image:
    """More than 8 bits of grey to 8.

    White is 65535 where the format says so; elsewhere it is the first of 1 (for floats), 255, 65535 and the
    image's own brightest value that leaves no value above it.
    """
    grey = np.asarray(image)
    if not np.isfinite(grey).all():
        raise RefsegError(f"{name} holds values that are not finite numbers; replace them")
    brightest = float(grey.max())
    declared = image.mode.startswith("I;16") or image.format == "PNG"
    whites = (65535.0,) if declared else (255.0, 65535.0, brightest)
    if image.mode == "F":
        whites = (1.0, *whites)
    white = next((white for white in whites if white >= brightest), 65535.0)
    scaled = np.clip(grey.astype(np.float32) * (255.0 / white), 0, 255)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _from_array(array: npt.NDArray[np.generic]) -> Image.Image:
    shape = "×".join(map(str, array.shape))
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        channels_first = array.ndim == 3 and array.shape[0] in (1, 3)
        cure = "move the channels last with array.transpose(1, 2, 0)" if channels_first else "give (H, W, 3)"
        raise RefsegError(f"an array of shape {shape or '()'} is not a photograph; {cure}")
    if array.size == 0:
        raise RefsegError(f"an array of shape {shape} has no pixels; give one that has some")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:  # before anything looks at every value
        raise RefsegError(_too_large("the array", f"{array.shape[1]}×{array.shape[0]}"))
    if array.dtype != np.uint8:
        raise RefsegError(f"a photograph is a uint8 array of 0 to 255; {_dtype_cure(array)}")
    return Image.fromarray(array)


def _dtype_cure(array: npt.NDArray[np.generic]) -> str:
    if array.dtype.kind not in "iuf":
        return f"convert this one of {array.dtype} with array.astype(np.uint8)"
    if not np.isfinite(array).all():
        return "this one holds NaN or infinity: replace them and convert it"
    low, high = float(array.min()), float(array.max())
    found = f"this one is {array.dtype} from {low:g} to {high:g}"
    if low < 0 or high > 65535:
        return f"{found}: bring its values into that range and convert it"
    if array.dtype.kind == "f" and high <= 1:
        return f"{found}: use (array * 255).round().astype(np.uint8)"
    if high > 255:
        return f"{found}: use (array / 257).round().astype(np.uint8) if 65535 is white"
    return f"{found}: use array.astype(np.uint8)"


def _too_large(name: str, size: str) -> str:
    return f"{name} has {size} pixels and the limit is {MAX_PIXELS // 1_000_000} million; scale it down first"


def _too_much_beside(fault: Exception, name: str) -> str:
    """The sentence for text or profiles that inflate to megabytes, at which Pillow stops; empty for other faults."""
    if str(fault).lower().startswith(("decompressed data too large", "too much memory used in text chunks")):
        return f"{name} carries text or a colour profile of more than 1 MB; save it again without metadata"
    return ""


def _not_a_photograph(head: bytes, name: str) -> str:
    if head.startswith(_OWN_SIGNATURES) or head[8:12] == b"WEBP":
        return f"{name} is damaged or cut short; get a new copy"
    for offset, signature, found in _OTHER_SIGNATURES:
        if head[offset:].startswith(signature):
            return f"{name} is {found}; {_CONVERT}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in text:
        return f"{name} is an SVG drawing; {_CONVERT}"
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return f"{name} is a web page; download the photograph itself"
    if _is_text(head):
        if head.startswith(b"version https://git-lfs"):
            return f"{name} is a Git LFS pointer; fetch the photograph itself with `git lfs pull`"
        return f"{name} is text; give a photograph"
    return f"{name} is not an image of a known format; {_CONVERT}"


def _is_text(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a character cut at the end does not count
    except UnicodeDecodeError:
        return False
    return b"\0" not in head
