import numpy as np
import pytest

from refseg.masks import iou


@pytest.mark.parametrize(
    ("one", "other", "share"), [((0, 2), (1, 4), 0.25), ((0, 2), (2, 4), 0.0), ((0, 0), (0, 0), 0.0)]
)
def test_iou_by_hand(one, other, share):
    columns = np.arange(4)[None].repeat(3, axis=0)
    first, second = ((columns >= start) & (columns < end) for start, end in (one, other))
    assert iou(first, second) == share
