"""Answers about a photograph as a field of a FiftyOne sample, in FiftyOne's JSON; FiftyOne itself is not needed."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

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
