"""What is sent as a photograph: one row a case, with what must come of it.

The expected outcome is the size (H, W) of the mask where the photograph is answered, or words of the one sentence that
refuses it. `EITHER` stands where damage may or may not show in the pixels: an answer or a refusal, nothing else.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import PIL
from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
EITHER = "either"
NOISE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
SIZE = (40, 56)
READ_BACK = SIZE if int(PIL.__version__.partition(".")[0]) >= 13 else EITHER
"""Of what Pillow writes and, before version 13, cannot read itself."""
ORIENTATION = 0x0112
CONVERT = "convert it to PNG, JPEG, WebP, BMP or TIFF"


@dataclass(frozen=True)
class Photograph:
    """One case: the bytes of a file, and what must come of them in Python, from the command and from the server."""

    make: Callable[[], bytes]
    expected: tuple[int, int] | str = SIZE
    status: int = 422
    """The server's, where it refuses."""
    large: bool = False
    """Beyond the small limits of the tests' server; marked slow."""


def file_of(image: Image.Image, format: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def noise(format: str = "PNG", **options) -> bytes:
    return file_of(Image.fromarray(NOISE), format, **options)


def frames(format: str) -> bytes:
    """A file of several pictures, the first of which counts."""
    other = [Image.fromarray(np.ascontiguousarray(NOISE[::-1]))]
    return file_of(Image.fromarray(NOISE), format, save_all=True, append_images=other)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int = 8, colour: int = 2, data: bytes = b"\0") -> bytes:
    """A PNG whose header promises width × height pixels; `data` is what the pixels inflate to."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def deep(samples: int, colour: int) -> bytes:
    """A PNG of 16 bits a sample."""
    return png(56, 40, 16, colour, bytes(40 * (1 + 56 * 2 * samples)))


def beside(kind: bytes, data: bytes, times: int = 1, last: bool = False) -> bytes:
    """A PNG with more chunks: before its pixels, or after them."""
    whole, place = noise(), -12 if last else 33
    return whole[:place] + chunk(kind, data) * times + whole[place:]


def inflating(size: int) -> bytes:
    return zlib.compress(bytes(size))


def promising(format: str, side: int) -> bytes:
    """A small file whose header promises side × side pixels."""
    whole = file_of(Image.new("RGB", (13_107, 3), "red"), format)
    order = {"JPEG": ">HH", "WEBP": "<HH", "BMP": "<ii", "TIFF": "<HHIIHHII"}[format]
    old, new = ((3, 13_107), (side, side)) if format == "JPEG" else ((13_107, 3), (side, side))
    if format == "TIFF":  # two entries of the directory: tag, type, count, value
        old, new = (256, 4, 1, 13_107, 257, 4, 1, 3), (256, 4, 1, side, 257, 4, 1, side)
    assert whole.count(struct.pack(order, *old)) == 1
    return whole.replace(struct.pack(order, *old), struct.pack(order, *new))


def comments(number: int) -> bytes:
    """Segments of a JPEG, 64 kB each."""
    return (b"\xff\xfe" + struct.pack(">H", 65_535) + b"x" * 65_533) * number


def bomb() -> bytes:
    """14,000 × 14,000 black pixels, whole, in some 25 kB."""
    return png(14_000, 14_000, bits=1, colour=0, data=bytes(14_000 * 1_751))


def cut(format: str, fiftieths: int) -> bytes:
    whole = noise(format)
    return whole[: len(whole) * fiftieths // 50]


def flipped(format: str, seed: int) -> bytes:
    """Eight bits are wrong: half of them where headers are, half anywhere."""
    damaged = np.frombuffer(noise(format), np.uint8).copy()
    random = np.random.default_rng(seed)
    for end in (400, len(damaged)):
        damaged[random.integers(0, end, 4)] ^= np.uint8(1) << random.integers(0, 8, 4, dtype=np.uint8)
    return damaged.tobytes()


def turned(orientation: int, format: str) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return noise(format, exif=exif)


def plain(mode: str, format: str, value=0) -> bytes:
    return file_of(Image.new(mode, SIZE[::-1], value), format)


def of_size(height: int, width: int) -> Photograph:
    return Photograph(lambda: file_of(Image.new("RGB", (width, height), "red"), "PNG"), (height, width))


def refused(content: bytes | Callable[[], bytes], words: str, status: int = 422) -> Photograph:
    return Photograph(content if callable(content) else lambda: content, words, status)


NO_PHOTOGRAPHS = {
    "empty": refused(b"", "0 bytes"),
    "one byte": refused(b"\xff", "known format"),
    "text": refused(b"not a photograph", "text"),
    "text in other letters": refused("фото".encode() * 300, "text"),
    "random bytes": refused(np.random.default_rng(7).bytes(5000), "known format"),
    "zeros": refused(bytes(100), "known format"),
    "ones": refused(b"\xff" * 100, "known format"),
    "web page": refused(b"\n<!DOCTYPE html><html></html>", "web page"),
    "web page without doctype": refused(b"<HTML><body>404</body></HTML>", "web page"),
    "svg": refused(b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "svg behind a byte order mark": refused(b"\xef\xbb\xbf<svg/>", "SVG"),
    "json": refused(b'{"detail": "not found"}', "text"),
    "pdf": refused(b"%PDF-1.7\n\xe2\xe3", "PDF"),
    "pdf of a photograph": refused(lambda: noise("PDF"), "PDF"),
    "postscript": refused(b"%!PS-Adobe-3.0 EPSF-3.0\n", "text"),
    "photoshop": refused(b"8BPS\0\1" + bytes(40), "Photoshop"),
    "gif": refused(lambda: noise("GIF"), "GIF"),
    "animated gif": refused(lambda: frames("GIF"), "GIF"),
    "jpeg 2000": refused(b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    "jpeg xl": refused(b"\xff\x0a" + bytes(40), "JPEG XL"),
    "avif": refused(b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
    "heic": refused(b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
    "video": refused(b"\0\0\0\x18ftypisom\0\0\0\0", "video"),
    "avi": refused(b"RIFF\x24\0\0\0AVI LIST", "video"),
    "sound": refused(b"RIFF\x24\0\0\0WAVEfmt ", CONVERT),
    "icon": refused(lambda: noise("ICO"), CONVERT),
    "portable pixmap": refused(lambda: noise("PPM"), CONVERT),
    "targa": refused(lambda: noise("TGA"), CONVERT),
    "archive": refused(b"PK\x03\x04\x14\0", "ZIP"),
    "gzip": refused(b"\x1f\x8b\x08\0", "gzip"),
    "array": refused(b"\x93NUMPY\1\0v\0", "NumPy"),
    "pickle": refused(b"\x80\x04\x95\x0b\0\0\0\0\0\0\0}\x94.", CONVERT),
    "pointer": refused(b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "png of text": refused(b"\x89PNG\r\n\x1a\n" + b"text " * 40, "damaged"),
    "webp of nothing": refused(b"RIFF\x04\0\0\0WEBP", "damaged"),
    "tiff of nothing": refused(b"II*\0\x08\0\0\0\0\0", "damaged"),
    "tiff whose directory names itself": refused(
        b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 330, 4, 1, 8) + b"\x08\0\0\0", "damaged"
    ),
    "png without pixels": refused(png(0, 10), "damaged"),
    "png without data": refused(png(10, 10), "damaged"),
    "png of too little data": refused(png(56, 40, data=bytes(500)), "damaged"),
    "png of an unknown kind of colour": refused(png(56, 40, colour=5, data=bytes(7000)), "damaged"),
    "png whose data is damaged": refused(lambda: noise()[:60] + b"!!!!" + noise()[64:], "damaged"),
    "grey that is not a number": refused(
        lambda: file_of(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "finite"
    ),
    "grey that is infinite": refused(
        lambda: file_of(Image.fromarray(np.full((4, 4), np.inf, np.float32)), "TIFF"), "finite"
    ),
}

TRUNCATED = {
    f"{format} cut to {n}/50": refused(lambda format=format, n=n: cut(format, n), "damaged")
    for format in FORMATS
    for n in range(1, 50)
}

DAMAGED = {
    f"{format} with wrong bits {seed}": Photograph(lambda format=format, seed=seed: flipped(format, seed), EITHER)
    for format in FORMATS
    for seed in range(6)
}

TOO_LARGE = {
    "bomb": refused(bomb, "million", 413),
    **{
        f"{format} that promises 14,000²": refused(lambda format=format: promising(format, 14_000), "million", 413)
        for format in ("JPEG", "WEBP", "BMP", "TIFF")
    },
    "png that promises 11,000 × 10,000": refused(png(11_000, 10_000), "million", 413),
    "png that promises 60,000²": refused(png(60_000, 60_000), "million", 413),
    "png that promises 2³¹−1": refused(png(2**31 - 1, 2**31 - 1), "million", 413),
    "png that promises 1 × 200,000,000": refused(png(1, 200_000_000), "million", 413),
}

BESIDE = {
    "text of 1.5 MB": Photograph(lambda: beside(b"tEXt", b"Comment\0" + b"x" * 1_500_000)),
    "text that inflates to 0.9 MB": Photograph(lambda: beside(b"zTXt", b"Comment\0\0" + inflating(900_000))),
    "text that inflates to 5 MB": refused(lambda: beside(b"zTXt", b"Comment\0\0" + inflating(5_000_000)), "metadata"),
    "text that inflates behind the pixels": refused(
        lambda: beside(b"zTXt", b"Comment\0\0" + inflating(2_000_000), last=True), "metadata"
    ),
    "eighty texts that inflate to 1 MB": refused(
        lambda: beside(b"zTXt", b"Comment\0\0" + inflating(1_000_000), times=80), "metadata"
    ),
    "international text that inflates": refused(
        lambda: beside(b"iTXt", b"Comment\0\1\0\0\0" + inflating(5_000_000)), "metadata"
    ),
    "profile that inflates to 5 MB": refused(lambda: beside(b"iCCP", b"x\0\0" + inflating(5_000_000)), "metadata"),
    "20,000 empty texts": Photograph(lambda: beside(b"tEXt", b"a\0", times=20_000)),
    "unknown chunks": Photograph(lambda: beside(b"abCd", b"x" * 1000, times=500)),
    **{
        f"{format} profile of 1.5 MB": Photograph(lambda format=format: noise(format, icc_profile=b"x" * 1_500_000))
        for format in ("JPEG", "WEBP", "TIFF")
    },
    **{
        f"{format} EXIF of 1.5 MB": Photograph(
            lambda format=format: noise(format, exif=b"Exif\0\0MM\0*" + b"x" * 1_500_000)
        )
        for format in ("PNG", "WEBP")
    },
    "EXIF of 60 kB": Photograph(lambda: noise("JPEG", exif=b"Exif\0\0MM\0*" + b"x" * 60_000)),
    "broken EXIF": Photograph(lambda: noise(exif=b"Exif\0\0II*\0\xff\xff\xff\xff")),
    "comments of 1.9 MB": Photograph(lambda: noise("JPEG")[:2] + comments(29) + noise("JPEG")[2:]),
    "bytes behind the end": Photograph(lambda: noise() + b"x" * 1000),
    "two files in one": Photograph(lambda: noise("JPEG") * 2),
}


CONTENT = {
    **{
        f"{height}×{width}": of_size(height, width)
        for height, width in ((1, 1), (1, 57), (57, 1), (1, 10_000), (10_000, 1))
    },
    "8K": Photograph(lambda: file_of(Image.new("RGB", (7680, 4320), "red"), "PNG"), (4320, 7680), large=True),
    **{
        f"several pictures in {format}": Photograph(lambda format=format: frames(format))
        for format in ("PNG", "WEBP", "TIFF", "MPO")
    },
    **{
        f"{mode} in {format}": Photograph(lambda mode=mode, format=format: plain(mode, format))
        for mode, format in (
            *(("1", "PNG"), ("1", "TIFF"), ("1", "BMP"), ("L", "JPEG"), ("L", "BMP"), ("LA", "PNG"), ("LA", "TIFF")),
            *(("P", "PNG"), ("P", "TIFF"), ("PA", "TIFF"), ("I;16", "PNG"), ("I;16", "TIFF")),
            *(("I", "TIFF"), ("F", "TIFF"), ("RGBA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "BMP"), ("RGBA", "TIFF")),
            *(("CMYK", "JPEG"), ("CMYK", "TIFF"), ("LAB", "TIFF"), ("RGBX", "TIFF")),
        )
    },
    "P in BMP": Photograph(lambda: plain("P", "BMP"), READ_BACK),
    "YCbCr in TIFF": Photograph(lambda: plain("YCbCr", "TIFF"), READ_BACK),
    "16 bits of RGB": Photograph(lambda: deep(3, 2)),
    "16 bits of RGBA": Photograph(lambda: deep(4, 6)),
    "16 bits of grey with transparency": Photograph(lambda: deep(2, 4)),
    **{
        f"orientation {orientation} in {format}": Photograph(
            lambda orientation=orientation, format=format: turned(orientation, format),
            SIZE[::-1] if 5 <= orientation <= 8 else SIZE,
        )
        for format, orientations in (("JPEG", (*range(1, 9), 0, 9, 65_535)), ("TIFF", (6, 8)), ("PNG", (6,)))
        for orientation in orientations
    },
}

PHOTOGRAPHS = {**NO_PHOTOGRAPHS, **TRUNCATED, **DAMAGED, **TOO_LARGE, **BESIDE, **CONTENT}
