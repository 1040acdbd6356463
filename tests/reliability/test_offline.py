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


def test_their_telemetry_is_absent_before_they_are_imported() -> None:
    """And importing refseg changes nothing for programs that never ask for them."""
    import ast

    import refseg

    program = "import refseg, sys; sys.exit('openvino_telemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    found = 0
    for path in Path(refseg.__file__).parent.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                lines = [ast.unparse(node) for node in ast.walk(function) if isinstance(node, ast.Expr | ast.Import)]
                if "import openvino" in lines or "import nncf" in lines:
                    assert "no_telemetry()" in lines, f"{path.name}: {function.name}"
                    found += 1
    assert found == 3
