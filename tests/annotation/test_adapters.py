"""supervision and FiftyOne read back what was written."""

from __future__ import annotations

import base64
import io
import json
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from refseg.annotation.adapters import to_fiftyone, to_supervision
from refseg.errors import RefsegError
from refseg.segmentation import Segmentation


def answer(expression, top, left, bottom, right, score=0.5, size=(40, 80)):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    mask[top : top + 1, left : left + 1] = False  # no plain rectangle
    return Segmentation(expression=expression, mask=mask, score=score, photo=Image.new("RGB", size[::-1]))


@pytest.fixture
def results():
    return [
        answer("the bag", 10, 20, 20, 60, 0.75),
        answer("nothing", 0, 0, 0, 0),
        answer("a hat", 0, 0, 40, 80),
        answer("the bag", 1, 2, 4, 8),
    ]


class TestSupervision:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")

    def test_of_several(self, results):
        detections = to_supervision(results)
        assert len(detections) == 3
        assert detections.xyxy.tolist() == [[20, 10, 60, 20], [0, 0, 80, 40], [2, 1, 8, 4]]
        np.testing.assert_array_equal(detections.mask, [results[n].mask for n in (0, 2, 3)])
        assert detections.confidence.tolist() == [0.75, 0.5, 0.5]
        assert list(detections["class_name"]) == ["the bag", "a hat", "the bag"]
        assert detections.class_id.tolist() == [0, 2, 0]

    def test_of_one_and_of_none(self, results):
        assert len(to_supervision(results[1:2])) == 0 and len(to_supervision([])) == 0

    def test_its_own_tools_take_them(self, results):
        detections = to_supervision(results)
        assert detections.area.tolist() == [result.mask.sum() for result in results if result.mask.any()]
        assert list(detections[detections.confidence > 0.6]["class_name"]) == ["the bag"]
        merged = self.supervision.Detections.merge([to_supervision(results[:2]), to_supervision(results[2:])])
        np.testing.assert_array_equal(merged.mask, detections.mask)
        picture = np.zeros((40, 80, 3), np.uint8)
        painted = self.supervision.MaskAnnotator(opacity=1.0).annotate(picture.copy(), to_supervision(results[:1]))
        np.testing.assert_array_equal(painted.any(axis=2), results[0].mask)

    def test_photographs_of_different_sizes_are_refused(self, results):
        with pytest.raises(RefsegError, match="each on its own"):
            to_supervision([*results, answer("x", 0, 0, 2, 2, size=(5, 5))])


def test_supervision_that_is_missing_has_a_cure(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(RefsegError, match=r"refseg\[supervision\]"):
        to_supervision(results[:1])


class TestFiftyOne:
    def test_by_hand(self, results):
        field = json.loads(json.dumps(to_fiftyone(results)))
        assert field["_cls"] == "Detections"
        first, hat, small = field["detections"]
        assert first["bounding_box"] == [0.25, 0.25, 0.5, 0.25] and hat["bounding_box"] == [0, 0, 1, 1]
        assert (first["_cls"], first["label"], first["confidence"]) == ("Detection", "the bag", 0.75)
        mask = np.load(io.BytesIO(zlib.decompress(base64.b64decode(small["mask"]))))
        np.testing.assert_array_equal(mask, results[3].mask[1:4, 2:8])

    def test_the_real_library_reads_it(self, results):
        fiftyone = pytest.importorskip("fiftyone", reason="FiftyOne is not installed")
        field = to_fiftyone(results)
        sample = fiftyone.Sample.from_json(json.dumps({"filepath": "a.jpg", "refseg": field}))
        for detections in (fiftyone.Detections.from_dict(field), sample.refseg):
            for detection, result in zip(detections.detections, [results[n] for n in (0, 2, 3)], strict=True):
                left, top, right, bottom = result.box
                np.testing.assert_array_equal(detection.mask, result.mask[top:bottom, left:right])
                whole = detection.to_segmentation(frame_size=(80, 40), target=1).mask
                np.testing.assert_array_equal(whole.astype(bool), result.mask)
                assert (detection.label, detection.confidence) == (result.expression, result.score)
