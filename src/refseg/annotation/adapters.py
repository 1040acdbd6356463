"""Answers about a photograph in the forms of FiftyOne and supervision; FiftyOne itself is not needed."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refseg.errors import RefsegError

if TYPE_CHECKING:
    from supervision import Detections

    from refseg.segmentation import Segmentation


def to_fiftyone(results: Iterable[Segmentation]) -> dict[str, Any]:
    """`Detections` of the answers with a mask, ready for JSON and for `fiftyone.Detections.from_dict`.

    A detection's box is [left, top, width, height] relative to the photograph, its mask covers the box alone, and its
    label is the expression.
    """
    return {"_cls": "Detections", "detections": [_detection(result) for result in results if result.box is not None]}


def _detection(result: Segmentation) -> dict[str, Any]:
    assert result.box is not None
    left, top, right, bottom = result.box
    height, width = result.mask.shape
    content = io.BytesIO()
    np.save(content, result.mask[top:bottom, left:right])
    return {
        "_cls": "Detection",
        "label": result.expression,
        "bounding_box": [left / width, top / height, (right - left) / width, (bottom - top) / height],
        "mask": base64.b64encode(zlib.compress(content.getvalue())).decode("ascii"),
        "confidence": result.score,
    }


def to_supervision(results: Sequence[Segmentation]) -> Detections:
    """The answers with a mask: N of them as xyxy (N, 4), mask (N, H, W), confidence (N,), the scores.

    class_id (N,) numbers the expressions by their first appearance, so that annotators colour them apart, and
    data["class_name"] holds them. Raises RefsegError if supervision is missing, or if the answers are about
    photographs of different sizes.
    """
    try:
        import supervision
    except ImportError as fault:
        raise RefsegError(f'{fault.name} is missing; pip install "refseg[supervision]"') from fault
    if len({result.mask.shape for result in results}) > 1:
        raise RefsegError("these answers are about photographs of different sizes; convert those of each on its own")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(result.expression for result in results))}
    shown = [(result, result.box) for result in results if result.box is not None]
    if not shown:
        return supervision.Detections.empty()
    return supervision.Detections(
        xyxy=np.array([box for _, box in shown], dtype=np.float32),
        mask=np.stack([result.mask for result, _ in shown]),
        confidence=np.array([result.score for result, _ in shown], dtype=np.float32),
        class_id=np.array([numbers[result.expression] for result, _ in shown]),
        data={"class_name": np.array([result.expression for result, _ in shown])},
    )
