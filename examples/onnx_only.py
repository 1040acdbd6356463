"""Segments one photograph by an exported model, with numpy, Pillow, onnxruntime and tokenizers alone.

refseg export --out exported
python examples/onnx_only.py street.jpg "the red bag" --model exported --out mask.png
"""

import argparse
import json
import unicodedata
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path)
    parser.add_argument("expression")
    parser.add_argument("--model", type=Path, required=True, help="what refseg export wrote")
    parser.add_argument("--out", type=Path, default=Path("mask.png"), help="a PNG, white at the referent")
    options = parser.parse_args()
    plan = json.loads((options.model / "preprocessing.json").read_text(encoding="utf-8"))
    encoder, decoder = (
        onnxruntime.InferenceSession(str(options.model / plan[part]["file"]))
        for part in ("image_encoder", "expression_decoder")
    )
    photo = ImageOps.exif_transpose(Image.open(options.photo)).convert("RGB")
    # The features serve any number of expressions about the photograph.
    features = encoder.run(None, {"images": to_square(photo, plan["image"])})
    ids = to_words(options.expression, options.model, plan["words"])
    (logits,) = decoder.run(None, {"ids": ids, **dict(zip(plan["image_encoder"]["outputs"], features, strict=True))})
    size, side = (photo.height, photo.width), plan["image"]["side"]
    spans = shown_at(size, side) if plan["image"]["letterbox"] else [(0, side), (0, side)]
    shares = [(start / side, length / side) for start, length in spans]
    probability = 1 / (1 + np.exp(-resize(logits[0, 0], size, shares)))
    found = probability > plan["mask"]["threshold"]
    Image.fromarray(found.astype(np.uint8) * 255).save(options.out)
    print(f"{options.out}: {found.mean():.1%} of the photograph")


def to_square(photo: Image.Image, plan: dict) -> np.ndarray:
    """The photograph as (1, 3, S, S) float32 in 0..1; the training's statistics are inside the graph."""
    side, filter = plan["side"], (Image.Resampling.BILINEAR, None, plan["reducing_gap"])
    if plan["letterbox"]:
        (top, height), (left, width) = shown_at((photo.height, photo.width), side)
        square = Image.new("RGB", (side, side))
        square.paste(photo.resize((width, height), *filter), (left, top))
    else:
        square = photo.resize((side, side), *filter)
    return np.asarray(square, dtype=np.float32).transpose(2, 0, 1)[None] / 255


def shown_at(size: tuple[int, int], side: int) -> list[tuple[int, int]]:
    """Where a square shows a photograph (H, W) that is scaled to fit: start and length of rows and columns."""
    lengths = [max(1, round(length * side / max(size))) for length in size]
    return [((side - length) // 2, length) for length in lengths]


def to_words(expression: str, folder: Path, plan: dict) -> np.ndarray:
    """ids (1, T) int64 of the T words that are read."""
    tokenizer = Tokenizer.from_file(str(folder / plan["file"]))
    plain = tokenizer.normalizer.normalize_str(expression)
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(plain)]
    found = [(tokenizer.token_to_id(word), word) for word in words]
    known = [number for number, word in found if number is not None or not is_punctuation(word)] or [None]
    read = [plan["unknown"]["id"] if number is None else number for number in known[: plan["max_words"]]]
    return np.array([read], dtype=np.int64)


def is_punctuation(word: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in word)


def resize(logits: np.ndarray, size: tuple[int, int], shares: list[tuple[float, float]]) -> np.ndarray:
    """Bilinear with half-pixel centres, as refseg brings a part of mask logits (h, w) to a photograph's (H, W)."""
    for length, (start, part) in zip(size, shares, strict=True):  # rows first; each turn brings the other axis forward
        whole = len(logits)
        place = np.maximum(start * whole + (np.arange(length) + 0.5) * (part * whole / length) - 0.5, 0)
        low = np.minimum(place.astype(np.int64), whole - 1)
        high = np.minimum(low + 1, whole - 1)
        share = (place - low).astype(np.float32)[:, None]
        logits = (logits[low] * (1 - share) + logits[high] * share).T
    return logits


if __name__ == "__main__":
    main()
