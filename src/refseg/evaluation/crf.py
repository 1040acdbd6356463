"""Dense CRF: a mask follows the photograph's edges, as in the methods that SHNet is compared with.

Krähenbühl and Koltun, NIPS 2011, by pydensecrf2. SHNet's own numbers are without it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from refseg.errors import RefsegError
from refseg.transforms import Floats

STEPS = 5
NEAR = {"sxy": 3, "compat": 3}
ALIKE = {"sxy": 20, "srgb": 3, "compat": 10}
"""Neighbours within 3 pixels agree, and so do places within 20 pixels whose colours differ by 3 of 255: the values of
CMSA, BRINet and others that build on one code base. They refine on the network's square; here it is the photograph's
own pixels."""


def need_crf() -> None:
    """Raises RefsegError if pydensecrf2 is not there."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError as fault:
        raise RefsegError("the dense CRF needs pydensecrf2; pip install 'refseg[crf]', with a C++ compiler") from fault


def refine(photo: Image.Image, probability: Floats) -> Floats:
    """Probabilities (H, W), 0..1, after five steps of mean field over the photograph, W×H; seconds on the CPU."""
    need_crf()
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    h, w = probability.shape
    crf = DenseCRF2D(w, h, 2)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(np.stack([1 - probability, probability]), clip=1e-5)))
    crf.addPairwiseGaussian(**NEAR)
    crf.addPairwiseBilateral(**ALIKE, rgbim=np.array(photo.convert("RGB")))
    refined: Floats = np.asarray(crf.inference(STEPS), dtype=np.float32)[1].reshape(h, w)
    return refined
