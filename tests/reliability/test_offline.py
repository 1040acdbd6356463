"""Nothing calls another machine unasked."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys

asked = []
events = ("socket.connect", "socket.sendto", "socket.getaddrinfo")
sys.addaudithook(lambda event, arguments: asked.append((event, arguments)) if event in events else None)

import numpy as np
import refseg

for engine in ("onnx", "torch", "openvino"):
    refseg.load(sys.argv[1], device="cpu", engine=engine)(np.zeros((64, 64, 3), np.uint8), "the dog")
if "nncf" in sys.argv:
    import nncf
import threading
for thread in threading.enumerate():
    if thread is not threading.current_thread() and not thread.daemon:
        thread.join(5)
sys.exit(f"asked {asked}" if asked else 0)
"""


@pytest.mark.slow
def test_no_engine_calls_home(tiny_model: Path) -> None:
    """OpenVINO and NNCF would, at their import, if `refseg` let them."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_model), "nncf"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_their_telemetry_is_absent_once_refseg_is_imported() -> None:
    program = "import refseg, importlib.util, sys; sys.exit(sys.modules['openvino_telemetry'] is not None)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
