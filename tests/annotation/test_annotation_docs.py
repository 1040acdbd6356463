"""docs/annotation.md runs from top to bottom."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "annotation.md"
BLOCK = re.compile(r"<!-- run(?:: (\w+))? -->\s*\n```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_block_of_the_page_runs(tmp_path):
    from refseg.demo import sample_photo

    (tmp_path / "photos").mkdir()
    with Image.open(sample_photo()) as photo:
        photo.resize((256, 256)).save(tmp_path / "photos" / "street.jpg")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert {language for _, language, _ in blocks} == {"python", "bash"}
    for needed, language, text in blocks:
        if needed and importlib.util.find_spec(needed) is None:
            continue
        command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
        environment = {**os.environ, "PATH": path}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{text}\n{done.stderr}"
